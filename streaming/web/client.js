// The page: connects the controls of its first tab to one <persona-stream>, and shows avatars, voices, samples, state and
// figures. The other tabs are in make.js and dub.js.

import "./persona-stream.js";
import { setUpDubbing } from "./dub.js";
import { setUpMaking } from "./make.js";
import { picture, request } from "./request.js";
import { isTooLong, nameOf, problemOf, readable } from "./scripts.js";
import { setUpTabs } from "./tabs.js";
import { inWords } from "./wording.js";

const $ = (id) => document.getElementById(id);
const avatar = $("avatar");

/** Takes key, session and token out of the address, where others could read them. The tab keeps the key, this entry of
 * its history the session. */
function takeFromAddress() {
  const address = new URL(location.href);
  const key = address.searchParams.get("key");
  if (key) sessionStorage.setItem("key", key);
  avatar.key = sessionStorage.getItem("key");
  const given = { ...history.state };
  for (const name of ["session", "token"]) {
    // a session that another program has opened and speaks through
    given[name] = address.searchParams.get(name) ?? given[name];
    if (given[name]) avatar.setAttribute(name, given[name]);
  }
  for (const name of ["key", "session", "token"]) address.searchParams.delete(name);
  history.replaceState(given, "", address);
}

async function loadChoices() {
  const [{ samples }, { voices }] = await Promise.all(
    ["samples", "voices"].map(async (name) => (await request("GET", `v1/${name}`)).json()),
  );
  await loadAvatars();
  for (const id of ["voices", "dub-voice"]) $(id).replaceChildren(...voiceChoices(voices));
  $("say").hidden = $("kind-text").hidden = voices.length === 0;
  $("samples").replaceChildren(...samples.map(sampleButton));
  setUpTabs($("tabs"), showTab);
}

/** Shows the server's avatars, and chooses the one of that name, or the first. */
async function loadAvatars(chosen) {
  const { avatars } = await (await request("GET", "v1/avatars")).json();
  const index = Math.max(0, avatars.findIndex(({ name }) => name === chosen));
  $("avatars").replaceChildren(...avatars.map(avatarChoice));
  $("avatars").querySelectorAll("input")[index].checked = true;
  $("who").hidden = avatars.length < 2 || avatar.hasAttribute("session");
  showPictures();
  choose(avatars[index]);
}

/** A session is open while its tab is shown: the others need the machine for themselves. */
function showTab(name) {
  $("state").hidden = name !== "live";
  if (name !== "make") making.close();
  if (name === "live") {
    showChosen();
    return avatar.connect(); // the avatar is visible, muted, before the first gesture
  }
  avatar.disconnect();
  (name === "make" ? making : dubbing).open();
}

/** Options, grouped by maker (`kokoro/af_heart`). */
function voiceChoices(voices) {
  const makers = new Map();
  for (const voice of voices) {
    const [, maker, name] = /^(?:([^/]*)\/)?(.*)$/s.exec(voice);
    makers.set(maker, [...(makers.get(maker) ?? []), new Option(nameOf(name), voice)]);
  }
  return [...makers].flatMap(([maker, options]) => {
    if (maker === undefined) return options;
    const group = Object.assign(document.createElement("optgroup"), { label: maker });
    group.append(...options);
    return [group];
  });
}

function avatarChoice(found) {
  const choice = document.createElement("label");
  const input = Object.assign(document.createElement("input"), { type: "radio", name: "avatar", value: found.name });
  input.onchange = () => choose(found);
  const image = Object.assign(new Image(72, 72), { alt: "" });
  image.dataset.picture = found.thumbnail;
  const name = document.createElement("span");
  name.textContent = readable(found.name);
  choice.append(input, image, name);
  return choice;
}

/** Shows the avatars' pictures, as far as the key that this tab has lets it. */
async function showPictures() {
  for (const image of document.querySelectorAll("#avatars img:not([src])")) {
    const address = await picture(image.dataset.picture, avatar.key);
    if (address) image.src = address;
  }
}

let chosen = null; // of the server's avatars

function choose(found) {
  chosen = found;
  if (!$("live").hidden) showChosen();
}

function showChosen() {
  const { name, width, height } = chosen;
  avatar.setAttribute("avatar", name);
  $("main").style.setProperty("--ratio", width / height);
}

function sampleButton({ name, url, duration_s: seconds }) {
  const item = document.createElement("li");
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: readable(name) });
  const length = document.createElement("small");
  length.textContent = `${Math.round(seconds)} s`;
  button.append(length);
  button.onclick = () => speak(async () => (await request("GET", url)).blob(), $("sounds"));
  item.append(button);
  return item;
}

/** Speaks the text or sound that `get` returns, and resolves to its id; shows the error below `field` if that fails. */
async function speak(get, field, options) {
  tell("");
  try {
    return await avatar.speak(await get(), options);
  } catch (error) {
    tell(error.message, field);
  }
}

/** Shows an error at the end of the part of the page that it concerns. */
function tell(text, field = $("stage")) {
  if (text) field.append($("message"));
  $("message").querySelector("p").textContent = text;
  $("message").hidden = !text;
}

const waiting = new Map(); // texts that have not begun, by the id of their utterance

function showQueue() {
  const items = [...waiting.values()].map((text) => Object.assign(document.createElement("li"), { textContent: text }));
  $("waiting").replaceChildren(...items);
  $("queue").hidden = waiting.size === 0;
}

async function speakText() {
  const text = $("text").value.trim();
  const problem = problemOfText(text);
  if (problem) return tell(problem, $("say"));
  if (!text) return;
  $("text").select(); // the next one replaces it
  const id = await speak(() => text, $("say"), { voice: $("voices").value });
  if (id) waiting.set(id, text);
  showQueue();
}

/** Why a text cannot be spoken in the chosen voice, or null. */
function problemOfText(text) {
  return problemOf(text, $("voices").value, [...$("voices").options].map((option) => option.value));
}

async function toggleMicrophone() {
  if ($("microphone").getAttribute("aria-pressed") === "true") return avatar.closeMicrophone();
  tell("");
  try {
    await avatar.openMicrophone();
  } catch (error) {
    const known = {
      NotAllowedError: "The browser blocks the microphone for this page. Allow it beside the address, then press again.",
      NotFoundError: "No microphone was found. Plug one in, then press again.",
      NotReadableError: "Another program uses the microphone. Close it, then press again.",
    };
    tell(known[error.name] ?? `No microphone: ${error.message}.`, $("talk"));
  }
}

/** Asks for the key; `refused` is the key that the server rejected, or null. */
function askKey(refused) {
  const dialog = $("keys");
  const input = $("key");
  input.value = "";
  input.setAttribute("aria-invalid", String(refused !== null));
  if (refused !== null) {
    $("keyhint").textContent = "The server did not take that key.";
    sessionStorage.removeItem("key");
  }
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => {
      const key = dialog.returnValue === "given" ? input.value : null;
      if (key) sessionStorage.setItem("key", key);
      avatar.key = key;
      resolve(key);
    };
  });
}

function showState({ name, title }) {
  tell("");
  $("state").textContent = title;
  $("state").dataset.state = name;
  $("speech").disabled = !["live", "reconnecting"].includes(name);
  $("stop").disabled = ["idle", "ended"].includes(name);
  if (name === "live") showPictures(); // by then the key has been asked for
}

const FIGURES = {
  fps: ["fps", (value) => `${value.toFixed(1)} fps`],
  first: ["firstFrameMs", (value) => `${Math.round(value)} ms`],
  response: ["responseMs", (value) => `${Math.round(value)} ms`],
  skew: ["skewMs", (value) => `${value < -0.5 ? "−" : ""}${Math.abs(Math.round(value))} ms`],
  bitrate: ["bitrateKbps", (value) => `${Math.round(value)} kbit/s`],
  rtt: ["roundTripMs", (value) => `${Math.round(value)} ms`],
};

async function showFigures() {
  const found = await avatar.figures();
  if (!avatar.speaking) found.skewMs = null; // silence has no lips to be in step with
  for (const [id, [name, shown]] of Object.entries(FIGURES)) $(id).textContent = found[name] === null ? "–" : shown(found[name]);
}

avatar.askKey = askKey;
avatar.addEventListener("state", ({ detail }) => showState(detail));
avatar.addEventListener("error", ({ detail }) => tell(inWords(detail), $("say")));
for (const event of ["playback-started", "playback-finished"]) {
  avatar.addEventListener(event, ({ detail: { id } }) => waiting.delete(id) && showQueue());
}
avatar.addEventListener("microphone", ({ detail: { on, level } }) => {
  $("microphone").setAttribute("aria-pressed", String(on));
  $("microphone").style.setProperty("--level", level.toFixed(2));
});
$("microphone").onclick = toggleMicrophone;
$("stop").onclick = avatar.disconnect;
$("say").onsubmit = (event) => {
  event.preventDefault();
  speakText();
};
$("text").oninput = () => tell(isTooLong($("text").value) ? problemOfText($("text").value) : "", $("say"));
$("text").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("say").requestSubmit();
};
$("clear").onclick = () => avatar.interrupt();
$("nokey").onclick = () => $("keys").close(""); // no submit button, or Enter would press this first one
$("dismiss").onclick = () => tell("");
$("file").onchange = ({ target }) => {
  const [file] = target.files;
  if (file) speak(() => file, $("sounds"));
  target.value = "";
};
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.defaultPrevented && !$("keys").open && avatar.busy) avatar.interrupt();
});
const user = { key: () => avatar.key, askKey };
const dubbing = setUpDubbing(user);
const making = setUpMaking({
  ...user,
  voice: () => $("voices").value,
  made: loadAvatars,
  gone: loadAvatars,
  meet: () => $("live-tab").click(),
});
setInterval(showFigures, 1000);
takeFromAddress();
loadChoices().catch((error) => {
  showState({ name: "ended", title: "The server cannot be reached" });
  tell(`The page could not load its lists: ${error.message}. Reload the page.`);
});
