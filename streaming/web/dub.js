// The tab "Dub a video": a form, the progress of the dub, and its result beside the video as it was.

import { Refusal, request, upload } from "./request.js";
import { problemOf } from "./scripts.js";
import { dubErrorInWords, dubSummary, stageInWords, timeLeft } from "./wording.js";

const $ = (id) => document.getElementById(id);
const OPTIONS = ["length", "from", "to", "face", "mix"];
const INPUTS = { video: "video", speech: "sound", text: "words", voice: "dub-voice", options: "length" };
const ERRORS = ["video", "sound", "words", "dub-voice", ...OPTIONS, "start"];
const STORED = "dub"; // in the tab's storage: the dub that a reload shows again

let user = null; // {key(), askKey(refused)}
let limits = null; // of the server
let dub = null; // {url, token}
let events = null;
let sending = null; // AbortController of the upload

/** Prepares the tab; `open()` is to be called when it is shown. */
export function setUpDubbing(options) {
  user = options;
  $("dubbing").onsubmit = (event) => {
    event.preventDefault();
    start();
  };
  for (const kind of document.querySelectorAll("input[name=kind]")) kind.onchange = showKind;
  $("video").onchange = showChosenVideo;
  $("sound").onchange = () => {
    forgetError("sound");
    $("soundname").textContent = $("sound").files[0]?.name ?? "Choose a sound file";
  };
  for (const id of ["words", "dub-voice", ...OPTIONS]) $(id).oninput = () => forgetError(id);
  $("cancel").onclick = cancel;
  $("again").onclick = startAgain;
  for (const side of ["before", "after"]) {
    $(`show-${side}`).onclick = () => showSide(side);
    $(side).onerror = () => ($("unplayable").hidden = false);
    $(side).onloadedmetadata = () => ($("unplayable").hidden = true);
  }
  return { open };
}

async function open() {
  try {
    ({ limits } = await (await asked((token) => request("GET", "v1/dubs", { token }))).json());
    const stored = JSON.parse(sessionStorage.getItem(STORED) ?? "null");
    if (stored && !dub) follow(stored);
  } catch (error) {
    tell("start", dubErrorInWords(error));
    $("start").disabled = error instanceof Refusal && error.status === 403;
  }
}

/** The answer to a request that needs the server's key, which the user is asked for as long as it is wrong. */
async function asked(send) {
  for (let refused = null; ; ) {
    const key = user.key();
    try {
      return await send(key);
    } catch (error) {
      if (!(error instanceof Refusal) || error.status !== 401) throw error;
      refused = key;
      if (!(await user.askKey(refused || null))) throw error;
    }
  }
}

const kind = () => document.querySelector("input[name=kind]:checked").value;

function showKind() {
  $("by-sound").hidden = kind() !== "sound";
  $("by-text").hidden = kind() !== "text";
}

function showChosenVideo() {
  forgetError("video");
  const [file] = $("video").files;
  if (!file) return;
  $("choosetext").textContent = "Choose another video";
  $("videohint").textContent = file.name;
  play(URL.createObjectURL(file), null);
}

/** Why the form cannot be sent, as [id of the input, sentence]; null where it can. */
function problem() {
  const [video] = $("video").files;
  const [sound] = $("sound").files;
  const text = $("words").value.trim();
  if (!video) return ["video", "Choose the video that gets the new speech."];
  if (kind() === "sound" && !sound) return ["sound", "Choose a file with the new speech."];
  if (kind() === "text" && !text) return ["words", "Type the words of the new speech."];
  if (kind() === "text") {
    const found = problemOf(text, $("dub-voice").value, [...$("dub-voice").options].map((option) => option.value));
    if (found) return ["words", found];
  }
  const bytes = video.size + (kind() === "sound" ? sound.size : 0);
  if (limits && bytes > limits.max_bytes) {
    const most = Math.floor(limits.max_bytes / 2 ** 20).toLocaleString();
    return ["video", `The files are larger than the ${most} MB that this server takes. Cut the video into parts.`];
  }
  const invalid = OPTIONS.find((id) => $(id).validity?.valid === false);
  return invalid ? [invalid, $(invalid).validationMessage] : null;
}

function filledForm() {
  const form = new FormData();
  form.append("video", $("video").files[0]);
  if (kind() === "sound") form.append("speech", $("sound").files[0]);
  else {
    form.append("text", $("words").value.trim());
    form.append("voice", $("dub-voice").value);
  }
  for (const id of OPTIONS) if ($(id).value) form.append(id, $(id).value);
  return form;
}

async function start() {
  ERRORS.forEach(forgetError);
  const found = problem();
  if (found) return tell(...found);
  sending = new AbortController();
  show("work");
  showWork({ stage: "upload", done: 0, total: 1 });
  const onProgress = (share) => showWork({ stage: "upload", done: share, total: 1 });
  try {
    const form = filledForm();
    const { signal } = sending;
    const answer = await asked((token) => upload("v1/dubs", form, { token, onProgress, signal }));
    follow({ url: answer.urls.self, token: answer.token });
  } catch (error) {
    show("form");
    if (error.name !== "AbortError") fail(error);
  }
}

/** Shows a dub until its end. */
function follow(stored) {
  dub = stored;
  sessionStorage.setItem(STORED, JSON.stringify(dub));
  show("work");
  events = new EventSource(`${dub.url}/events?token=${encodeURIComponent(dub.token)}`); // it then names addresses with tokens
  events.addEventListener("dub", ({ data }) => showDub(JSON.parse(data)));
  events.onerror = () => events.readyState === EventSource.CLOSED && explainLoss(); // else the browser connects again
}

/** Explains why the events ended early: the server has no such dub any more. A page that is being left asks in vain. */
async function explainLoss() {
  const { url, token } = dub;
  try {
    showDub(await (await request("GET", url, { token })).json());
  } catch (error) {
    if (!(error instanceof Refusal)) return;
    forget();
    show("form");
    tell("start", "The server no longer has this dub: it was deleted, or the server was restarted. Start it again.");
  }
}

function showDub(state) {
  if (["waiting", "running"].includes(state.status)) return showWork(state);
  events.close();
  if (state.status === "finished") return showResult(state);
  const error = state.error;
  forget();
  show("form");
  if (error) fail(error);
}

function showWork(state) {
  const { done, total, remarks = [] } = state;
  const text = stageInWords(state);
  if ($("stagetext").textContent !== text) $("stagetext").textContent = text; // or it would be read again
  if (total > 0) $("progress").value = done / total;
  else $("progress").removeAttribute("value");
  $("left").textContent = timeLeft(state.left_s);
  showRemarks($("work"), remarks);
}

function showResult(state) {
  show("done");
  $("summary").textContent = dubSummary(state.report);
  showRemarks($("done"), state.remarks);
  const name = state.name.replace(/\.[^.]*$/, "");
  $("download").href = state.urls.result;
  $("download").download = `${name}-dubbed.mp4`;
  $("report").href = state.urls.report;
  const hours = Math.round(state.kept_s / 360) / 10;
  $("kept").textContent = `The server deletes both videos in ${hours < 1 ? `${Math.round(state.kept_s / 60)} min` : `${hours} h`}.`;
  $("choosetext").textContent = "Choose another video";
  $("videohint").textContent = state.name;
  play(state.urls.result, state.urls.source);
  $("done").querySelector("h2").focus({ preventScroll: true });
}

function showRemarks(card, remarks) {
  const list = card.querySelector(".remarks");
  if (list.childElementCount === remarks.length) return;
  list.replaceChildren(...remarks.map(({ text }) => Object.assign(document.createElement("li"), { textContent: text })));
}

/** Shows one of the parts of the tab: form, work or done. */
function show(part) {
  $("dubbing").hidden = part !== "form";
  $("choose").hidden = part !== "form";
  $("work").hidden = part !== "work";
  $("done").hidden = part !== "done";
}

function play(after, before) {
  for (const [id, url] of [["after", after], ["before", before]]) {
    if ($(id).src.startsWith("blob:")) URL.revokeObjectURL($(id).src);
    if (url) $(id).src = url;
    else $(id).removeAttribute("src");
  }
  $("screen").hidden = false;
  $("compare").hidden = !before;
  $("unplayable").hidden = true;
  showSide("after");
}

/** Goes on with the other video at the same place. */
function showSide(side) {
  const [shown, hidden] = side === "after" ? [$("after"), $("before")] : [$("before"), $("after")];
  if (shown.hidden) {
    shown.currentTime = hidden.currentTime;
    if (!hidden.paused) shown.play().catch(() => {});
    hidden.pause();
  }
  shown.hidden = false;
  hidden.hidden = true;
  for (const each of ["before", "after"]) $(`show-${each}`).setAttribute("aria-pressed", String(each === side));
}

async function cancel() {
  sending?.abort(new DOMException("cancelled", "AbortError"));
  if (!dub) return;
  events.close();
  const { url, token } = dub;
  forget();
  show("form");
  await request("DELETE", url, { token }).catch(() => {}); // the server deletes it after a while
}

async function startAgain() {
  const ended = dub;
  forget();
  show("form");
  $("compare").hidden = true;
  if ($("video").files.length) showChosenVideo();
  else {
    $("screen").hidden = true;
    $("choosetext").textContent = "Choose a video";
  }
  $("video").focus();
  if (ended) await request("DELETE", ended.url, { token: ended.token }).catch(() => {});
}

function forget() {
  dub = null;
  sessionStorage.removeItem(STORED);
}

/** Shows an error of the server below the field that it concerns. */
function fail(error) {
  tell(INPUTS[error.field] ?? error.field ?? "start", dubErrorInWords(error));
}

function tell(id, text) {
  const field = ERRORS.includes(id) ? id : "start";
  if (OPTIONS.includes(field)) $("more").open = true;
  $(field).setAttribute("aria-invalid", String(field !== "start"));
  $(`${field}-error`).textContent = text;
  $(`${field}-error`).hidden = false;
  $(field).focus();
}

function forgetError(id) {
  $(id).removeAttribute("aria-invalid");
  $(`${id}-error`).hidden = true;
}
