// The texts of states and errors: what happened, and the remedy.

const CONNECTING = {
  session: ["Connecting", "Opening a session…"],
  "node-lost": ["Connecting", "The machine of this session is gone; opening another one…"],
  path: ["Connecting", "Searching for a network path to the server…"],
  "no-path": ["Connecting", "No network path yet; trying again…"],
  "no-socket": ["Connecting", "The speech connection did not open; trying again…"],
};
const RECONNECTING = {
  interrupted: "The network is interrupted; waiting for it.",
  "no-path": "Picture and sound were lost; trying again.",
  "no-socket": "The speech connection was lost; trying again.",
  unreachable: "The server does not answer; trying again.",
};
const WAITING = {
  capacity: ["The server is full", "All sessions are in use. Trying again until one is free."],
  quota: ["Too many at once", ""],
  draining: ["The server is shutting down", "Trying again until it is back."],
  unreachable: ["The server cannot be reached", "Is it running, and is this device online?"],
};
const ENDED = {
  stopped: ["Not connected", "The session is closed."],
  closed: ["The session was ended", ""],
  idle: ["The session ended", ""],
  lifetime: ["The session's time is up", ""],
  draining: ["The server has shut down", ""],
  failed: ["The session failed", ""],
  unauthorized: ["A key is needed", "This server requires its key."],
  forbidden: ["Not allowed here", ""],
  "session-closed": ["The session has ended", ""],
  "node-lost": ["The session has ended", ""],
  "unknown-avatar": ["No such avatar", ""],
  "no-path": [
    "No network path",
    "The server answers, but picture and sound do not arrive: a firewall may block UDP. Try another network.",
  ],
  "no-socket": ["No speech connection", "A proxy on the path may block websockets."],
};

/** {title, text} for a state of the conversation; `foreign`: the page is of another origin than the server. */
export function wordsFor({ name, reason, detail }, foreign) {
  if (name === "connecting") return words(CONNECTING[reason] ?? CONNECTING.session);
  if (name === "reconnecting") return { title: "Reconnecting", text: RECONNECTING[reason] ?? sentence(detail) };
  if (name === "waiting" && reason === "unreachable" && foreign) {
    const text = `Is it running, and does its --cors-origins name ${location.origin}?`;
    return { title: WAITING.unreachable[0], text };
  }
  if (name === "waiting") return words(WAITING[reason] ?? ["Not now", ""], detail);
  if (name === "closing") return { title: "The server is shutting down", text: "Speech that was begun is still played." };
  if (name === "ended") return words(ENDED[reason] ?? ["It did not work", ""], detail);
  return { title: name === "live" ? "Live" : "Not connected", text: "" };
}

const ERRORS = {
  capacity: "Too much waits to be spoken already. Wait until some of it has been spoken, or clear it.",
  draining: "The server is shutting down and takes nothing new.",
  "voice-auth": "The voice's service refuses this server's key; its operator has to look. Choose another voice.",
  "voice-quota": "The voice's service takes no more at present. Try again later, or choose another voice.",
  "voice-unreachable": "The voice's service cannot be reached. Try again, or choose another voice.",
  "voice-stalled": "The voice stopped in the middle. Try again, or choose another voice.",
  "voice-broken": "The voice stopped in the middle. Try again, or choose another voice.",
};

/** An error of the speech connection as a sentence for the page's user. */
export function inWords({ code, message }) {
  return ERRORS[code] ?? sentence(message);
}

const STAGES = {
  upload: "Uploading",
  voice: "Speaking the text",
  faces: "Looking for faces",
  people: "Getting to know the people",
  references: "Choosing pictures of lips",
  pictures: "Painting mouths",
  file: "Writing the file",
  face: "Looking for the face",
  fit: "Measuring the face",
  base: "Copying the pictures",
  idle: "Painting the resting mouth",
  report: "Writing the report",
  load: "Loading the avatar",
};
const JOB_ERRORS = {
  capacity: "Other videos are being worked on, and no more may wait. Try again in some minutes.",
  draining: "The server is shutting down and takes nothing new.",
  storage: "The server has no room for the video. Try again later.",
  unauthorized: "This server requires its key.",
  "request-timeout": "The upload stood still for too long. Check the network, and start again.",
  enrolment: "The server could not process this video. Save it as MP4 with another program, and start again.",
  dubbing: "The server could not process this video. Save it as MP4 with another program, and start again.",
  dependency: "This server is not set up to work on videos; its operator has to look.",
  internal: "The server failed; its operator has to look.",
};

/** What is done for a job at present. */
export function stageInWords({ status, stage, ahead }) {
  if (status === "waiting") return ahead > 1 ? `Waiting for ${ahead} other videos` : "Waiting for another video";
  return STAGES[stage] ?? "Preparing";
}

export function timeLeft(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s left`;
  return `about ${Math.round(seconds / 60)} min left`;
}

/** A dub's report in a sentence or two. */
export function dubSummary({ changed, pictures, closed }) {
  if (changed === undefined) return "";
  const text = `${changed.toLocaleString()} of ${pictures.toLocaleString()} pictures have a new mouth.`;
  if (!closed) return text;
  return `${text} ${closed.toLocaleString()} of them are closed, because the new speech is silent there.`;
}

const CAMERA_ERRORS = {
  NotAllowedError: "The browser blocks the camera for this page. Allow it beside the address, then try again.",
  NotFoundError: "No camera or no microphone was found. Plug one in, or choose a video.",
  NotReadableError: "Another program uses the camera. Close it, then try again.",
  TypeError: "Browsers give the camera to pages of https or of this machine alone. Choose a video instead.",
};

export function cameraErrorInWords({ name, message }) {
  return CAMERA_ERRORS[name] ?? `No camera: ${message}.`;
}

/** The report of an enrolment in a sentence. */
export function enrolmentSummary({ used_s: used, clip_s: clip }) {
  return used === undefined ? "" : `${used.toFixed(1)} s of the ${clip.toFixed(1)} s of your video are used.`;
}

/** An error of a job as a sentence: a refused or unanswered request, or the error of a job that failed. */
export function jobErrorInWords({ code, message }) {
  if (code === undefined) return "The server cannot be reached. Check the network, and try again.";
  return JOB_ERRORS[code] ?? sentence(message);
}

function words([title, text], detail) {
  return { title, text: text || sentence(detail) };
}

/** A detail of the server as a sentence: it begins in lower case, because it follows a name elsewhere. */
function sentence(detail) {
  if (!detail) return "";
  const text = detail[0].toUpperCase() + detail.slice(1);
  return /[.!?…]$/.test(text) ? text : `${text}.`;
}
