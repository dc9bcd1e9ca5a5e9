// The page: wires its controls to one conversation, and says what is going on.

import { Conversation, request } from "./connection.js";
import { Microphone, decode, sendPcm } from "./sound.js";

const $ = (id) => document.getElementById(id);
const video = $("avatar");
const TONES = { live: "good", lost: "bad", refused: "bad" };

let conversation = null;
let microphone = null;
let sending = null; // AbortController of the file that is being sent
let count = 0;
const sentAt = new Map(); // utterance → when its first sound left, until the server plays it
const playing = new Set();

const nextId = () => `page-${++count}`;

function show(name, text) {
  $("state").textContent = text;
  $("state").dataset.tone = TONES[name] ?? "quiet";
  const screen = { live: "live", opening: "busy", connecting: video.srcObject ? "live" : "busy" }[name] ?? "off";
  $("screen").dataset.state = screen;
  $("start").disabled = screen !== "off";
  $("start").querySelector("span").textContent = screen === "busy" ? "Starting…" : "Start";
  $("stop").disabled = screen === "off";
  for (const control of document.querySelectorAll("[data-live]")) control.disabled = name !== "live";
}

function showSpeaking() {
  $("speaking").hidden = playing.size === 0;
  $("interrupt").disabled = playing.size === 0 && sentAt.size === 0 && !sending;
}

async function loadChoices() {
  const [{ avatars }, { samples }, { voices }] = await Promise.all(
    ["avatars", "samples", "voices"].map(async (name) => (await request("GET", `/v1/${name}`)).json()),
  );
  $("avatars").replaceChildren(...avatars.map(({ name }) => new Option(name, name)));
  $("who").hidden = avatars.length < 2;
  const names = new Intl.DisplayNames([navigator.language], { type: "language", fallback: "code" });
  const spoken = (voice) => (/^[a-z]{2,3}(-[a-z]+)*$/.test(voice) ? names.of(voice) : voice); // others have names
  $("voices").replaceChildren(...voices.map((voice) => new Option(spoken(voice), voice)));
  $("samples").replaceChildren(...samples.map(sampleButton));
  const poster = () => {
    const { width, height, thumbnail } = avatars.find(({ name }) => name === $("avatars").value);
    video.poster = thumbnail;
    $("screen").style.setProperty("--ratio", width / height);
  };
  $("avatars").onchange = () => {
    stop();
    poster();
  };
  poster();
  await start(); // the avatar is alive, in silence, before anybody presses anything
}

function sampleButton({ name, url, duration_s }) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  button.disabled = true;
  button.dataset.live = "";
  button.textContent = name.replaceAll(/[-_]+/g, " ");
  const length = document.createElement("small");
  length.textContent = `${Math.round(duration_s)} s`;
  button.append(length);
  button.onclick = async () => playBytes(await (await request("GET", url)).arrayBuffer());
  item.append(button);
  return item;
}

async function start() {
  conversation?.close();
  const mine = (conversation = new Conversation());
  const began = performance.now();
  mine.addEventListener("state", ({ detail: { name, text } }) => {
    if (mine !== conversation) return;
    if (name === "lost" || name === "closed") forget();
    show(name, text);
  });
  mine.addEventListener("message", ({ detail }) => mine === conversation && obey(detail));
  mine.addEventListener("stream", ({ detail: stream }) => {
    video.srcObject = stream;
    video.requestVideoFrameCallback?.(() => ($("first").textContent = `${Math.round(performance.now() - began)} ms`));
    playAloud();
  });
  try {
    await mine.open($("avatars").value);
  } catch (error) {
    mine.close("refused", `Could not start: ${error.message}`);
  }
}

function stop() {
  conversation?.close();
}

function forget() {
  conversation = null;
  sending?.abort();
  sending = null;
  stopMicrophone();
  sentAt.clear();
  playing.clear();
  showSpeaking();
  video.srcObject = null;
  for (const id of ["fps", "first", "response", "rtt", "sync"]) $(id).textContent = "–";
}

/** Browsers refuse sound before a gesture: then play in silence, and unmute at the first one. */
async function playAloud() {
  try {
    video.muted = false;
    await video.play();
  } catch (error) {
    if (error.name !== "NotAllowedError") return;
    video.muted = true;
    video.play().catch(() => {});
    $("unmute").hidden = false;
    const unmute = () => {
      video.muted = false;
      $("unmute").hidden = true;
      for (const gesture of ["pointerdown", "keydown"]) document.removeEventListener(gesture, unmute);
    };
    for (const gesture of ["pointerdown", "keydown"]) document.addEventListener(gesture, unmute);
  }
}

function obey(message) {
  if (message.type === "playback.started") {
    const sent = sentAt.get(message.id);
    if (sent !== undefined) $("response").textContent = `${Math.round(performance.now() - sent)} ms`;
    sentAt.delete(message.id);
    playing.add(message.id);
  } else if (message.type === "playback.finished") {
    sentAt.delete(message.id);
    playing.delete(message.id);
  } else if (message.type === "error") {
    $("hint").textContent = message.message;
    $("hint").setAttribute("role", "alert");
  }
  showSpeaking();
}

function begin() {
  const id = nextId();
  sentAt.set(id, performance.now());
  return id;
}

async function playBytes(bytes) {
  let pcm;
  try {
    pcm = await decode(bytes);
  } catch {
    obey({ type: "error", message: "This browser cannot read that file as sound; try WAV, MP3 or Ogg." });
    return;
  }
  sending?.abort();
  const mine = (sending = new AbortController());
  const id = begin();
  showSpeaking();
  await sendPcm(conversation, id, pcm, mine.signal);
  if (sending === mine) sending = null;
  showSpeaking();
}

function interrupt() {
  sending?.abort();
  stopMicrophone();
  conversation?.send({ type: "speech.cancel" });
}

async function startMicrophone() {
  microphone = { source: new Microphone(), id: nextId(), conversation };
  $("microphone").setAttribute("aria-pressed", "true");
  $("micname").textContent = "Microphone off";
  try {
    const level = (value) => $("level").style.setProperty("--level", value.toFixed(2));
    await microphone.source.start(conversation, microphone.id, level);
  } catch (error) {
    stopMicrophone();
    obey({ type: "error", message: `No microphone: ${error.message}` });
  }
}

function stopMicrophone() {
  if (!microphone) return;
  microphone.source.stop();
  if (microphone.source.announced) microphone.conversation?.send({ type: "speech.end", id: microphone.id });
  microphone = null;
  $("microphone").setAttribute("aria-pressed", "false");
  $("micname").textContent = "Microphone on";
  $("level").style.setProperty("--level", 0);
}

const last = { frames: 0, at: 0 };

async function showFigures() {
  if (!conversation) return;
  const inbound = {};
  let rtt;
  for (const report of (await conversation.stats()).values()) {
    if (report.type === "inbound-rtp") inbound[report.kind] = report;
    if (report.type === "candidate-pair" && report.nominated) rtt = report.currentRoundTripTime;
  }
  const { video: picture, audio: sound } = inbound;
  if (!picture) return;
  const seconds = (picture.timestamp - last.at) / 1000;
  const frames = picture.framesDecoded - last.frames;
  if (frames >= 0 && seconds < 3) $("fps").textContent = `${(frames / seconds).toFixed(1)} fps`;
  last.frames = picture.framesDecoded;
  last.at = picture.timestamp;
  if (rtt !== undefined) $("rtt").textContent = `${Math.round(rtt * 1000)} ms`;
  const skew = picture.estimatedPlayoutTimestamp - sound?.estimatedPlayoutTimestamp;
  if (Number.isFinite(skew)) $("sync").textContent = `${skew < 0 ? "−" : "+"}${Math.abs(Math.round(skew))} ms`;
}

$("start").onclick = start;
$("stop").onclick = stop;
$("interrupt").onclick = interrupt;
$("microphone").onclick = () => (microphone ? stopMicrophone() : startMicrophone());
$("say").onsubmit = (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text) return;
  conversation?.send({ type: "speech.text", id: begin(), text, voice: $("voices").value });
  showSpeaking();
};
$("text").onkeydown = (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("say").requestSubmit();
};
$("file").onchange = async ({ target }) => {
  const [file] = target.files;
  if (file) await playBytes(await file.arrayBuffer());
  target.value = "";
};
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("interrupt").disabled) interrupt();
});
addEventListener("pagehide", stop);
setInterval(showFigures, 1000);
loadChoices().catch((error) => show("lost", `The server cannot be reached: ${error.message}`));
