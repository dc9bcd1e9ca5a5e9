// The tab "Make your own": a video from the camera or a file becomes an avatar, which then says its first sentence.

import { Job } from "./job.js";
import { Recorder } from "./recorder.js";
import { request } from "./request.js";
import { cameraErrorInWords, enrolmentSummary } from "./wording.js";

const $ = (id) => document.getElementById(id);
const FIELDS = ["clip", "own-name", "agree", "make-start"];
const INPUTS = { video: "clip", name: "own-name", consent: "agree" };
const HANDOVER_MS = 300; // a machine may admit one session alone: this one's end has to reach the server before
const TEXT =
  "The quick brown fox jumps over the lazy dog, while five wizards move boxes of big, juicy peaches. " +
  "I often go for a walk by the sea, where the wind blows and the waves roll in. " +
  "Please call me before noon, and we shall have tea, cheese and fresh bread. " +
  "How many people would believe such a story? Maybe one, maybe all of them.";
const CUES = {
  ready: "Get ready: look into the camera.",
  read: "Read this aloud:",
  quiet: "Now look into the camera in silence, with closed lips.",
};
const LIGHTS = {
  dark: "It is dark: turn to a window or a lamp.",
  bright: "It is too bright: turn away from the light, or dim it.",
  good: "The light is good.",
};

let user = null;
let limits = null; // of the server
let job = null;
let recorder = null;
let recording = null; // a File from the camera

/** Prepares the tab. user: {key(), askKey(refused), voice(), made(name), gone(), meet()}. open() and close() are to be
 * called when it is shown and hidden. */
export function setUpMaking(options) {
  user = options;
  recorder = new Recorder($("preview"));
  job = new Job({
    root: $("make"),
    form: [$("making"), $("source")],
    list: "v1/enrolments",
    post: "v1/avatars",
    kind: "enrolment",
    user,
    fields: FIELDS,
    inputs: INPUTS,
    finished: showResult,
  });
  recorder.addEventListener("cue", ({ detail }) => showCue(detail));
  $("shoot").onclick = () => (recorder.open ? record() : openCamera());
  $("halt").onclick = () => recorder.stop();
  $("clip").onchange = () => $("clip").files.length && choose($("clip").files[0]);
  for (const id of ["own-name", "agree"]) $(id).oninput = () => job.forgetError(id);
  $("making").onsubmit = (event) => {
    event.preventDefault();
    start();
  };
  $("made").addEventListener("state", ({ detail }) => detail.name === "live" && sayFirst());
  $("meet").onclick = () => {
    $("made").disconnect();
    setTimeout(user.meet, HANDOVER_MS);
  };
  $("make-again").onclick = startAgain;
  $("make-delete").onclick = remove;
  return { open: async () => (limits = await job.open()), close };
}

/** The camera is on, and a session open, only while the tab is shown. */
function close() {
  closeCamera();
  $("made").disconnect();
}

async function openCamera() {
  job.forgetError("clip");
  try {
    await recorder.show((light) => showText("light", LIGHTS[light]));
  } catch (error) {
    recorder.close();
    return job.tell("clip", cameraErrorInWords(error));
  }
  showPicture("camera");
  $("light").hidden = false;
  $("shoot").textContent = "Record";
}

function closeCamera() {
  recorder.close();
  $("light").hidden = $("prompt").hidden = true;
  if (!$("camera").hidden) showPicture(recording ? "taken" : null);
  $("shoot").textContent = recording ? "Record again" : "Use the camera";
}

async function record() {
  const { readS, quietS } = $("camera").dataset;
  $("shoot").hidden = $("drop").hidden = true;
  $("halt").hidden = $("prompt").hidden = false;
  $("halt").focus();
  const file = await recorder.record(Number(readS), Number(quietS));
  $("shoot").hidden = $("drop").hidden = false;
  $("halt").hidden = $("prompt").hidden = true;
  $("count").textContent = "";
  if (!file) return;
  $("clip").value = "";
  choose(file, true);
  $("own-name").focus();
}

function showCue({ name, leftS }) {
  showText("cue", CUES[name]);
  $("lines").textContent = name === "quiet" ? "" : TEXT;
  $("count").textContent = name === "read" ? "" : Math.ceil(leftS);
}

/** Shows a text that screen readers read when it changes. */
function showText(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

/** Takes a video that was recorded or chosen. */
function choose(file, recorded = false) {
  job.forgetError("clip");
  recording = recorded ? file : null;
  if ($("take").src) URL.revokeObjectURL($("take").src);
  $("take").src = URL.createObjectURL(file);
  showPicture("taken");
  closeCamera();
  $("cliphint").textContent = recorded ? "or drop it here" : file.name;
}

/** Shows one of camera, taken and made, or none. */
function showPicture(id) {
  $("shoot").toggleAttribute("data-first", id === null);
  for (const each of ["camera", "taken", "made"]) $(each).hidden = each !== id;
}

/** Why the form cannot be sent, as [id of the input, sentence]; null where it can. */
function problem(video) {
  if (!video) return ["clip", "Record yourself, or choose a video."];
  if (limits && video.size > limits.max_bytes) {
    const most = Math.floor(limits.max_bytes / 2 ** 20).toLocaleString();
    return ["clip", `The video is larger than the ${most} MB that this server takes. Cut it.`];
  }
  if (!$("own-name").value.trim()) return ["own-name", "Give the avatar a name."];
  if (!$("agree").checked) return ["agree", "An avatar is made only with this consent."];
  return null;
}

function start() {
  job.forgetErrors();
  const video = recording ?? $("clip").files[0];
  const found = problem(video);
  if (found) return job.tell(...found);
  closeCamera();
  const form = new FormData();
  form.append("name", $("own-name").value);
  form.append("consent", `${$("agreement").textContent} Confirmed on this server's page on ${new Date().toISOString().slice(0, 10)}.`);
  form.append("video", video);
  job.start(form);
}

let first = null; // the sentence that the avatar has yet to say

async function showResult({ name, report, urls }) {
  $("make-title").textContent = `${name} is ready`;
  $("make-summary").textContent = enrolmentSummary(report);
  $("make-report").href = urls.report;
  $("make-file").href = urls.result;
  $("make-file").download = `${name}.avatar`;
  await user.made(name);
  const made = $("made");
  made.key = user.key();
  made.askKey = user.askKey;
  made.setAttribute("avatar", name);
  showPicture("made");
  first = `Hello, I am ${name}. This is how I look when I speak.`;
  made.connect();
}

function sayFirst() {
  const text = first;
  first = null;
  if (text && user.voice()) $("made").speak(text, { voice: user.voice() }).catch(() => {}); // it can be spoken to later
}

async function remove() {
  const avatar = $("made").getAttribute("avatar");
  $("made").disconnect();
  try {
    await job.asked((token) => request("DELETE", `v1/avatars/${encodeURIComponent(avatar)}`, { token }));
  } catch (error) {
    startAgain();
    return job.fail(error);
  }
  await user.gone();
  startAgain();
}

function startAgain() {
  $("made").disconnect();
  job.end();
  $("own-name").value = "";
  $("agree").checked = false;
  showPicture($("take").src ? "taken" : null);
  $("shoot").focus();
}
