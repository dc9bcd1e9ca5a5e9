// A recording of the camera in two parts, speech and silence, and what the light on the face is like.

const COUNTDOWN_S = 3;
const TYPES = ["video/webm;codecs=vp8,opus", "video/mp4", "video/webm"]; // VP8 costs the least to encode while recording
const BITRATE_BPS = 6_000_000;
const PICTURE = { width: { ideal: 1280 }, height: { ideal: 720 }, frameRate: { ideal: 30 }, facingMode: "user" };
const SOUND = { echoCancellation: false, noiseSuppression: false }; // they make sound and lips differ
const LIGHT_EVERY_MS = 500;
const [DARK, BRIGHT] = [60, 210]; // mean luma of the middle of the picture, 0 to 255

/** The camera, shown in a <video>. Events of record(): `cue` {name: "ready", "read" or "quiet", leftS}, each second. */
export class Recorder extends EventTarget {
  #video;
  #stream = null;
  #looking = null;
  #stop = null; // ends a recording

  constructor(video) {
    super();
    this.#video = video;
  }

  get open() {
    return this.#stream !== null;
  }

  /** Shows the camera; `onLight("dark", "good" or "bright")` is called now and then. Throws the errors of getUserMedia. */
  async show(onLight) {
    this.#stream = await navigator.mediaDevices.getUserMedia({ video: PICTURE, audio: SOUND });
    this.#video.srcObject = this.#stream;
    await this.#video.play();
    this.#looking = setInterval(() => onLight(lightOf(this.#video)), LIGHT_EVERY_MS);
  }

  close() {
    this.stop();
    clearInterval(this.#looking);
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    this.#stream = this.#video.srcObject = null;
  }

  /** Ends a recording early. */
  stop() {
    this.#stop?.();
  }

  /** Counts down, then records speech and silence. Resolves to a File, or to null if it is stopped before the silence. */
  async record(readS, quietS) {
    const stopped = new Promise((resolve) => (this.#stop = resolve));
    const wait = async (name, seconds) => {
      for (let leftS = seconds; leftS > 0; leftS -= 1) {
        this.dispatchEvent(new CustomEvent("cue", { detail: { name, leftS } }));
        if (await Promise.race([pause(Math.min(1, leftS)), stopped.then(() => true)])) return false;
      }
      return true;
    };
    try {
      if (!(await wait("ready", COUNTDOWN_S))) return null;
      const type = TYPES.find((each) => MediaRecorder.isTypeSupported(each));
      const recorder = new MediaRecorder(this.#stream, { mimeType: type, videoBitsPerSecond: BITRATE_BPS });
      const pieces = [];
      recorder.ondataavailable = ({ data }) => pieces.push(data);
      const ended = new Promise((resolve) => (recorder.onstop = resolve));
      recorder.start(1000);
      const whole = (await wait("read", readS)) && (await wait("quiet", quietS));
      if (recorder.state !== "inactive") recorder.stop(); // it is, where the camera was unplugged
      await ended;
      return whole ? new File(pieces, type.includes("mp4") ? "camera.mp4" : "camera.webm", { type }) : null;
    } finally {
      this.#stop = null;
    }
  }
}

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

/** The light in the middle of a video's picture, where the face is. */
function lightOf(video) {
  const canvas = new OffscreenCanvas(16, 16);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const { videoWidth: width, videoHeight: height } = video;
  context.drawImage(video, width / 3, height / 5, width / 3, height / 2, 0, 0, 16, 16);
  const { data } = context.getImageData(0, 0, 16, 16);
  let sum = 0;
  for (let i = 0; i < data.length; i += 4) sum += 0.2126 * data[i] + 0.7152 * data[i + 1] + 0.0722 * data[i + 2];
  const luma = sum / (data.length / 4);
  return luma < DARK ? "dark" : luma > BRIGHT ? "bright" : "good";
}
