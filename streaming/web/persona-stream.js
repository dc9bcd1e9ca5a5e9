// <persona-stream>: a live avatar for any page. docs/embed.md has its attributes, methods and events.

import { Conversation } from "./connection.js";
import { figuresOf } from "./figures.js";
import { picture } from "./request.js";
import { Microphone, decode, sendPcm, to16Bit } from "./sound.js";
import { Stage } from "./stage.js";
import { wordsFor } from "./wording.js";

const READY = ["live", "reconnecting", "closing"];

export class PersonaStream extends HTMLElement {
  static observedAttributes = ["avatar", "server", "controls", "muted"];

  /** The answer of POST /v1/sessions to your own web server, or a function that fetches it: (avatar) => Promise<answer>. */
  session = null;
  /** A key of the server, for pages that may know one. */
  key = null;
  /** A function (refused) => Promise<key or null>, called when the server requires a key. */
  askKey = null;

  #stage = new Stage(this);
  #conversation = null;
  #state = { name: "idle", reason: null, title: "Not connected", text: "" };
  #microphone = null;
  #sending = null; // AbortController of the sound that is being sent
  #sentAt = new Map(); // utterance → time of its start, until the server plays it
  #playing = new Set();
  #name = Math.random().toString(36).slice(2, 10); // several elements may speak through one session
  #count = 0;
  #connectedAt = 0;
  #firstFrameMs = null;
  #responseMs = null;
  #reports = null;

  constructor() {
    super();
    this.#stage.addEventListener("start", () => this.connect());
    this.#stage.addEventListener("interrupt", () => this.interrupt());
    this.#stage.addEventListener("frame", () => (this.#firstFrameMs ??= performance.now() - this.#connectedAt));
    this.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !this.busy) return;
      event.preventDefault(); // the page may use the same key
      this.interrupt();
    });
  }

  connectedCallback() {
    this.#showPoster();
    addEventListener("pagehide", this.disconnect);
    if (this.hasAttribute("autoconnect")) this.connect();
  }

  disconnectedCallback() {
    removeEventListener("pagehide", this.disconnect);
    this.disconnect();
  }

  attributeChangedCallback(name, before, now) {
    if (before === now) return;
    if (name === "controls") this.#stage.controls = now !== null;
    else if (name === "muted") this.#stage.video.muted = now !== null;
    else if (this.isConnected) {
      this.#showPoster();
      if (this.#conversation) this.#open(); // with the new avatar
    }
  }

  /** {name, reason, title, text, retryInS}; name: idle, connecting, live, reconnecting, waiting, closing or ended. */
  get state() {
    return this.#state;
  }

  get speaking() {
    return this.#playing.size > 0;
  }

  /** Whether there is something to interrupt. */
  get busy() {
    return this.#playing.size > 0 || this.#sentAt.size > 0 || this.#sending !== null || this.#microphone !== null;
  }

  get muted() {
    return this.#stage.video.muted;
  }

  set muted(muted) {
    this.#stage.video.muted = muted;
  }

  get volume() {
    return this.#stage.video.volume;
  }

  set volume(volume) {
    this.#stage.video.volume = volume;
  }

  /** Opens a conversation, or tries again at once while one waits; the state reports progress. */
  connect() {
    if (this.#state.name === "waiting") this.#conversation.retry();
    else this.#open();
  }

  /** Ends the conversation. */
  disconnect = () => this.#conversation?.close();

  /**
   * Speaks a text, in a voice of the server; a Blob or ArrayBuffer with a sound file that the browser can decode; or mono
   * samples at `sampleRate` in Hz (an Int16Array, or a Float32Array in [-1, 1]). Resolves to the utterance's id once
   * sending has begun. Throws an Error if not connected or not decodable, a TypeError without `sampleRate`.
   */
  async speak(what, { voice = this.getAttribute("voice"), sampleRate } = {}) {
    this.#letSoundOut();
    if (typeof what === "string") {
      return this.#begin((id) => this.#send({ type: "speech.text", id, text: what, ...(voice && { voice }) }));
    }
    const sound = ArrayBuffer.isView(what) ? { pcm: to16Bit(what), sampleRate } : await read(what);
    if (!sound.sampleRate) throw new TypeError("samples need their sampleRate in Hz");
    this.#sending?.abort();
    const mine = (this.#sending = new AbortController());
    return this.#begin((id) => {
      sendPcm(this.#conversation, id, sound, mine.signal).finally(() => {
        if (this.#sending === mine) this.#sending = null;
        this.#showSpeech();
      });
    });
  }

  /** Barge-in: drops current and waiting speech and closes the microphone. */
  interrupt() {
    this.#sending?.abort();
    this.closeMicrophone();
    this.#conversation?.send({ type: "speech.cancel" });
  }

  /** The avatar repeats the microphone's sound until it is closed or interrupted. Throws the errors of getUserMedia. */
  async openMicrophone() {
    if (this.#microphone) return;
    this.#letSoundOut();
    this.#requireConnection();
    const mine = (this.#microphone = { source: new Microphone(), id: this.#nextId(), conversation: this.#conversation });
    this.#tellMicrophone(0);
    try {
      await mine.source.start(mine.conversation, mine.id, (level) => this.#microphone === mine && this.#tellMicrophone(level));
    } catch (error) {
      if (this.#microphone === mine) this.closeMicrophone();
      throw error;
    }
  }

  closeMicrophone() {
    const closed = this.#microphone;
    if (!closed) return;
    this.#microphone = null;
    closed.source.stop();
    if (closed.source.announced) closed.conversation.send({ type: "speech.end", id: closed.id });
    this.#tellMicrophone(0);
  }

  /** The figures since the last call: those of figures.js, firstFrameMs, and responseMs of the last utterance. */
  async figures() {
    const reports = (await this.#conversation?.stats()) ?? new Map();
    const found = figuresOf(reports, this.#reports);
    this.#reports = reports;
    return { ...found, firstFrameMs: this.#firstFrameMs, responseMs: this.#responseMs };
  }

  get #server() {
    const { href } = new URL(this.getAttribute("server") ?? new URL("./", import.meta.url), location.href);
    return href.endsWith("/") ? href : `${href}/`; // it may be at a path of its own, behind a proxy
  }

  get #avatar() {
    return this.getAttribute("avatar");
  }

  #open() {
    this.disconnect();
    const { session, key, askKey } = this;
    const given = session ?? sessionOf(this.getAttribute("session"), this.getAttribute("token"));
    const options = { server: this.#server, avatar: this.#avatar, session: given, key, askKey };
    const mine = (this.#conversation = new Conversation(options));
    const listen = (name, obey) => mine.addEventListener(name, ({ detail }) => mine === this.#conversation && obey(detail));
    listen("state", (state) => this.#follow(state));
    listen("message", (message) => this.#obey(message));
    listen("stream", (stream) => this.#stage.play(stream));
    this.#connectedAt = performance.now();
    mine.open();
  }

  async #showPoster() {
    const avatar = this.#avatar;
    if (!avatar) return;
    const url = new URL(`v1/avatars/${encodeURIComponent(avatar)}/thumbnail.jpg`, this.#server);
    const poster = await picture(url, this.getAttribute("token") ?? this.key);
    if (poster && avatar === this.#avatar) this.#stage.poster = poster;
  }

  #follow(state) {
    const words = wordsFor(state, new URL(this.#server).origin !== location.origin);
    this.#state = { ...state, ...words };
    if (!READY.includes(state.name)) this.#forgetSpeech();
    if (state.name === "ended") {
      this.#conversation = null;
      this.#firstFrameMs = this.#responseMs = this.#reports = null;
    }
    if (["waiting", "ended"].includes(state.name)) this.#stage.clear();
    this.#stage.show(state, words);
    this.dispatchEvent(new CustomEvent("state", { detail: this.#state }));
  }

  #obey(message) {
    if (message.type === "session.ready") {
      this.#forgetSpeech(); // the server ended the utterances of the websocket that was lost
    } else if (message.type === "playback.started") {
      const sent = this.#sentAt.get(message.id);
      if (sent !== undefined) this.#responseMs = performance.now() - sent;
      this.#sentAt.delete(message.id);
      this.#playing.add(message.id);
      this.#tell("playback-started", { id: message.id });
    } else if (message.type === "playback.finished") {
      this.#sentAt.delete(message.id);
      this.#playing.delete(message.id);
      const { id, position_samples: positionSamples, interrupted } = message;
      this.#tell("playback-finished", { id, positionSamples, interrupted });
    } else if (message.type === "error") {
      const { code, message: text, retryable } = message;
      this.#tell("error", { code, message: text, retryable });
    }
    this.#showSpeech();
  }

  #begin(send) {
    this.#requireConnection();
    const id = this.#nextId();
    send(id);
    this.#sentAt.set(id, performance.now());
    this.#showSpeech();
    return id;
  }

  #send(message) {
    if (!this.#conversation.send(message)) throw new Error("The speech connection is being restored; try again.");
  }

  #nextId() {
    return `${this.#name}-${++this.#count}`;
  }

  #requireConnection() {
    if (!READY.includes(this.#state.name)) throw new Error("The avatar is not connected.");
  }

  #letSoundOut() {
    if (navigator.userActivation?.hasBeenActive ?? true) this.#stage.letSoundOut();
  }

  #forgetSpeech() {
    this.#sending?.abort();
    this.#sending = null;
    this.closeMicrophone();
    this.#sentAt.clear();
    this.#playing.clear();
    this.#showSpeech();
  }

  #showSpeech() {
    this.#stage.showSpeech(this.speaking, this.busy);
  }

  #tellMicrophone(level) {
    this.#tell("microphone", { on: this.#microphone !== null, level });
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

/** A session that another program has opened, in the form that Conversation takes. */
function sessionOf(id, token) {
  if (!id) return null;
  const path = `v1/sessions/${encodeURIComponent(id)}`;
  return { id, token, whep: `${path}/whep`, speech: `${path}/speech`, ice_servers: [] };
}

async function read(sound) {
  try {
    return await decode(sound instanceof Blob ? await sound.arrayBuffer() : sound);
  } catch {
    throw new Error("This browser cannot decode the file as sound; try WAV, MP3 or Ogg.");
  }
}

customElements.define("persona-stream", PersonaStream);
