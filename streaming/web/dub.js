// The tab "Dub a video": a form, the progress of the dub, and its result beside the video as it was.

import { Job } from "./job.js";
import { problemOf } from "./scripts.js";
import { dubSummary } from "./wording.js";

const $ = (id) => document.getElementById(id);
const OPTIONS = ["length", "from", "to", "face", "mix"];
const INPUTS = { video: "video", speech: "sound", text: "words", voice: "dub-voice", options: "length" };
const FIELDS = ["video", "sound", "words", "dub-voice", ...OPTIONS, "start"];

let limits = null; // of the server
let job = null;

/** Prepares the tab; `open()` is to be called when it is shown. user: {key(), askKey(refused)}. */
export function setUpDubbing(user) {
  job = new Job({
    root: $("dub"),
    form: [$("dubbing"), $("choose")],
    list: "v1/dubs",
    post: "v1/dubs",
    kind: "dub",
    user,
    fields: FIELDS,
    inputs: INPUTS,
    finished: showResult,
  });
  $("dubbing").onsubmit = (event) => {
    event.preventDefault();
    start();
  };
  for (const kind of document.querySelectorAll("input[name=kind]")) kind.onchange = showKind;
  $("video").onchange = showChosenVideo;
  $("sound").onchange = () => {
    job.forgetError("sound");
    $("soundname").textContent = $("sound").files[0]?.name ?? "Choose a sound file";
  };
  for (const id of ["words", "dub-voice", ...OPTIONS]) $(id).oninput = () => job.forgetError(id);
  $("again").onclick = startAgain;
  for (const side of ["before", "after"]) {
    $(`show-${side}`).onclick = () => showSide(side);
    $(side).onerror = () => ($("unplayable").hidden = false);
    $(side).onloadedmetadata = () => ($("unplayable").hidden = true);
  }
  return { open: async () => (limits = await job.open()) };
}

const kind = () => document.querySelector("input[name=kind]:checked").value;

function showKind() {
  $("by-sound").hidden = kind() !== "sound";
  $("by-text").hidden = kind() !== "text";
}

function showChosenVideo() {
  job.forgetError("video");
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

function start() {
  job.forgetErrors();
  const found = problem();
  if (found) job.tell(...found);
  else job.start(filledForm());
}

function showResult(state) {
  $("summary").textContent = dubSummary(state.report);
  const name = state.name.replace(/\.[^.]*$/, "");
  $("download").href = state.urls.result;
  $("download").download = `${name}-dubbed.mp4`;
  $("report").href = state.urls.report;
  const hours = Math.round(state.kept_s / 360) / 10;
  $("kept").textContent = `The server deletes both videos in ${hours < 1 ? `${Math.round(state.kept_s / 60)} min` : `${hours} h`}.`;
  $("choosetext").textContent = "Choose another video";
  $("videohint").textContent = state.name;
  play(state.urls.result, state.urls.source);
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

function startAgain() {
  job.end();
  $("compare").hidden = true;
  if ($("video").files.length) showChosenVideo();
  else {
    $("screen").hidden = true;
    $("choosetext").textContent = "Choose a video";
  }
  $("video").focus();
}
