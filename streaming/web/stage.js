// The element's view, in a shadow root: picture, notices, and controls of sound and screen.

const ICONS = {
  start: "M8 5.5v13l11-6.5z",
  loud: "M4 9.5v5h3.5L12 18.5V5.5L7.5 9.5zM15 8.5a5 5 0 0 1 0 7M17.5 6a8.5 8.5 0 0 1 0 12",
  muted: "M4 9.5v5h3.5L12 18.5V5.5L7.5 9.5zM16 9.5l5 5M21 9.5l-5 5",
  large: "M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5",
  small: "M9 4v5H4M20 9h-5V4M15 20v-5h5M4 15h5v5",
};
const icon = (name) => `<svg viewBox="0 0 24 24" aria-hidden="true"><path d="${ICONS[name]}"/></svg>`;

const MARKUP = `
<div class="frame" part="frame" data-state="idle">
  <video part="video" playsinline autoplay disablepictureinpicture aria-label="Live avatar"></video>
  <p class="unseen" role="status"></p>
  <p class="speaking" hidden><span></span>Speaking</p>
  <div class="notice" part="notice">
    <span class="spinner" aria-hidden="true"></span>
    <div class="words"><strong></strong><span></span></div>
    <button class="start" type="button" part="button">${icon("start")}<span>Start</span></button>
  </div>
  <button class="sound" type="button" part="button" hidden>${icon("muted")}<span>Turn on sound</span></button>
  <div class="controls" part="controls" role="group" aria-label="Sound and screen" hidden>
    <button class="mute" type="button" aria-label="Mute" aria-pressed="false">${icon("loud")}</button>
    <input class="volume" type="range" min="0" max="100" value="100" aria-label="Volume">
    <button class="interrupt" type="button" aria-keyshortcuts="Escape" title="Escape" disabled>Interrupt</button>
    <button class="full" type="button" aria-label="Full screen" aria-pressed="false">${icon("large")}</button>
  </div>
</div>`;

const STYLE = new CSSStyleSheet();
STYLE.replaceSync(`
:host { display: block; position: relative; aspect-ratio: 1; overflow: hidden; background: #14120f; color: #fff;
  font: 16px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; --ink: #fff;
  --accent: var(--persona-accent, #f0693f); --accent-ink: var(--persona-accent-ink, #1b0c06); }
:host([hidden]), [hidden] { display: none !important; }
* { box-sizing: border-box; }
.frame { position: absolute; inset: 0; container-type: inline-size; background: inherit; }
video { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; transition: opacity .3s; }
.frame:not([data-state="live"], [data-state="closing"], [data-state="idle"]) video { opacity: .55; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); margin: 0; }

.notice { position: absolute; inset: auto 16px 20px; display: flex; flex-wrap: wrap; align-items: center; gap: 12px 16px;
  width: fit-content; max-width: min(520px, 100% - 32px); margin-inline: auto; padding: 14px 18px; border-radius: 16px;
  background: rgb(20 18 15 / .9); box-shadow: 0 8px 30px rgb(0 0 0 / .35); }
.words { flex: 1 1 min(220px, 60cqw); display: grid; }
.words span { color: #d8d2cb; font-size: .92rem; overflow-wrap: anywhere; }
.words span:empty, .words strong:empty { display: none; }
.notice .start { margin-left: auto; }
.frame:is([data-state="reconnecting"], [data-state="closing"]) .notice { bottom: 76px; }
.frame:not([data-state="live"], [data-state="reconnecting"], [data-state="closing"]) .controls { display: none; }
.frame[data-state="live"] .notice { display: none; }
.frame[data-state="idle"] .notice { padding: 0; background: none; box-shadow: none; }
.frame[data-state="idle"] .words { display: none; }
.frame:is([data-state="connecting"], [data-state="reconnecting"], [data-state="closing"]) .start { display: none; }
.frame:is([data-state="connecting"], [data-state="reconnecting"]) .notice { flex-wrap: nowrap; }
.frame:not([data-state="connecting"], [data-state="reconnecting"]) .spinner { display: none; }
.spinner { flex: none; width: 20px; height: 20px; border: 3px solid rgb(255 255 255 / .25); border-top-color: #fff; border-radius: 50%;
  animation: turn 1s linear infinite; }
@keyframes turn { to { rotate: 1turn; } }

button { display: inline-flex; align-items: center; justify-content: center; gap: 8px; min-height: 44px; padding: 8px 16px;
  border: 0; border-radius: 12px; background: rgb(255 255 255 / .14); color: var(--ink); font: inherit; font-weight: 600;
  cursor: pointer; }
button:hover:enabled { background: rgb(255 255 255 / .26); }
button:disabled { cursor: default; color: rgb(255 255 255 / .5); background: rgb(255 255 255 / .07); }
svg { flex: none; width: 22px; height: 22px; fill: none; stroke: currentColor; stroke-width: 2; stroke-linecap: round;
  stroke-linejoin: round; }
.start, .sound { background: var(--accent); color: var(--accent-ink); border-radius: 999px; padding-inline: 16px 22px; }
.start:hover:enabled, .sound:hover:enabled { background: color-mix(in srgb, var(--accent), #fff 15%); }
.start svg { fill: currentColor; stroke: none; }
.sound { position: absolute; inset: auto 0 84px; width: fit-content; margin-inline: auto; min-height: 52px; font-size: 1.08rem;
  box-shadow: 0 8px 30px rgb(0 0 0 / .4); }
.frame:not([data-state="live"], [data-state="closing"]) .sound { display: none; }

.speaking { position: absolute; top: 14px; right: 14px; display: flex; align-items: center; gap: 8px; margin: 0;
  padding: 4px 12px; border-radius: 999px; background: rgb(20 18 15 / .75); font-size: .85rem; }
.speaking span { width: 8px; height: 8px; border-radius: 50%; background: #6fe0a5; animation: pulse 1s infinite alternate; }
@keyframes pulse { to { opacity: .25; } }

.controls { position: absolute; inset: auto 0 0; display: flex; align-items: center; gap: 8px; padding: 28px 12px 10px;
  background: linear-gradient(transparent, rgb(10 9 8 / .8)); }
.controls button { background: rgb(20 18 15 / .7); }
.controls button:hover:enabled { background: rgb(70 66 60 / .9); }
.controls button:disabled { color: #bdb7b0; }
.controls .mute, .controls .full { width: 44px; padding: 0; }
.controls .interrupt { margin-left: auto; }
.controls .interrupt:enabled { background: var(--accent); color: var(--accent-ink); }
.volume { width: 96px; height: 44px; margin: 0; accent-color: #fff; cursor: pointer; }
@container (max-width: 380px) { .volume { display: none; } }
:focus-visible { outline: 3px solid #fff; outline-offset: 2px; box-shadow: 0 0 0 5px #14120f; }
@media (prefers-reduced-motion: reduce) {
  * { animation: none !important; transition: none !important; }
}`);

/** Events: "start" and "interrupt" (their buttons), "frame" (the first picture of a stream is shown). */
export class Stage extends EventTarget {
  #host;
  #root;
  #shape = new CSSStyleSheet(); // aspect ratio of the picture; a style of the page overrides it
  #countdown = 0;
  #blocked = false; // the browser blocks sound until the first gesture

  constructor(host) {
    super();
    this.#host = host;
    this.#root = host.attachShadow({ mode: "open" });
    this.#root.adoptedStyleSheets = [STYLE, this.#shape];
    this.#root.innerHTML = MARKUP;
    const tell = (name) => () => this.dispatchEvent(new Event(name));
    this.#at(".start").onclick = tell("start");
    this.#at(".interrupt").onclick = tell("interrupt");
    this.#at(".sound").onclick = () => this.letSoundOut();
    this.#at(".mute").onclick = () => this.#toggleSound();
    this.#at(".volume").oninput = ({ target }) => {
      this.video.volume = target.value / 100;
      this.video.muted = target.value === "0";
      if (!this.video.muted) this.letSoundOut();
    };
    this.video.onvolumechange = () => this.#showVolume();
    this.#at(".full").onclick = () => this.#toggleFullScreen();
    host.addEventListener("fullscreenchange", () => this.#showFullScreen());
  }

  get video() {
    return this.#at("video");
  }

  set controls(shown) {
    this.#at(".controls").hidden = !shown;
  }

  /** The picture before the first live one; it also sets the element's aspect ratio. */
  set poster(url) {
    this.video.poster = url;
    const image = new Image();
    image.onload = () => {
      const ratio = `${image.naturalWidth} / ${image.naturalHeight}`;
      if (this.video.poster === image.src) this.#shape.replaceSync(`:host { aspect-ratio: ${ratio}; }`);
    };
    image.src = this.video.poster;
  }

  /** Shows state, title and text, and labels the button; the button counts down `retryInS`. */
  show({ name, retryInS }, { title, text }) {
    this.#at(".frame").dataset.state = name;
    this.#at(".words strong").textContent = title;
    this.#at(".words span").textContent = text;
    this.#at("[role=status]").textContent = `${title}. ${text}`;
    clearInterval(this.#countdown);
    const label = this.#at(".start span");
    label.textContent = { waiting: "Try now", ended: "Start again" }[name] ?? "Start";
    if (name !== "waiting") return;
    let left = Math.ceil(retryInS);
    const count = () => (label.textContent = left > 0 ? `Try now (${left--})` : "Trying…");
    count();
    this.#countdown = setInterval(count, 1000);
  }

  showSpeech(speaking, interruptible) {
    this.#at(".speaking").hidden = !speaking;
    this.#at(".interrupt").disabled = !interruptible;
  }

  /** Plays the stream: with sound if the browser allows it, else muted, with a button for the sound. */
  play(stream) {
    this.video.srcObject = stream;
    this.video.requestVideoFrameCallback?.((_, { width }) => {
      // browsers also call back for a stream that ended without a picture
      if (width > 0 && this.video.srcObject === stream) this.dispatchEvent(new Event("frame"));
    });
    this.#begin();
  }

  /** Turns sound on, if the browser blocked it and now allows it. */
  letSoundOut() {
    if (!this.#blocked) return;
    this.#blocked = false;
    this.#at(".sound").hidden = true;
    this.video.muted = false;
    this.#begin();
  }

  clear() {
    clearInterval(this.#countdown);
    this.video.srcObject = null;
    this.showSpeech(false, false);
  }

  #at(selector) {
    return this.#root.querySelector(selector);
  }

  async #begin() {
    try {
      await this.video.play();
    } catch (error) {
      if (error.name !== "NotAllowedError") return;
      this.#blocked = true;
      this.video.muted = true;
      this.#at(".sound").hidden = false;
      this.video.play().catch(() => {}); // in power-saving mode a device plays nothing: the button then starts the picture too
    }
  }

  #toggleSound() {
    if (this.#blocked) this.letSoundOut();
    else this.video.muted = !this.video.muted;
  }

  #showVolume() {
    const silent = this.video.muted || this.video.volume === 0;
    this.#at(".mute").setAttribute("aria-pressed", String(silent));
    this.#at(".mute path").setAttribute("d", ICONS[silent ? "muted" : "loud"]);
    this.#at(".volume").value = silent ? 0 : Math.round(this.video.volume * 100);
    if (!this.video.muted && this.#blocked) this.letSoundOut();
  }

  #toggleFullScreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else if (this.#host.requestFullscreen) this.#host.requestFullscreen().catch(() => {});
    else this.video.webkitEnterFullscreen?.(); // iPhones show only videos in full screen
  }

  #showFullScreen() {
    const full = document.fullscreenElement === this.#host;
    this.#at(".full").setAttribute("aria-pressed", String(full));
    this.#at(".full path").setAttribute("d", ICONS[full ? "small" : "large"]);
  }
}
