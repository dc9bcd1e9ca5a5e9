// Sources of speech: audio files and the microphone, as 16-bit PCM in messages of the speech protocol.

const FILE_RATE_HZ = 48000;
const PIECE_S = 0.1;
const AHEAD_S = 1.5; // how far a file is sent ahead of playout: an interruption never waits behind more than this
const BACKLOG_BYTES = 256 * 1024;

function base64(samples) {
  const bytes = new Uint8Array(samples.buffer, samples.byteOffset, samples.byteLength);
  let text = "";
  for (let start = 0; start < bytes.length; start += 0x8000) {
    text += String.fromCharCode(...bytes.subarray(start, start + 0x8000));
  }
  return btoa(text);
}

function toPcm(buffer) {
  const channels = Array.from({ length: buffer.numberOfChannels }, (_, index) => buffer.getChannelData(index));
  const mean = channels[0];
  for (let i = 0; channels.length > 1 && i < mean.length; i++) {
    let sum = 0;
    for (const channel of channels) sum += channel[i];
    mean[i] = sum / channels.length;
  }
  return to16Bit(mean);
}

/** Any audio file that this browser can decode, as {pcm, sampleRate}. */
export async function decode(bytes) {
  const decoder = new OfflineAudioContext(1, 1, FILE_RATE_HZ);
  return { pcm: toPcm(await decoder.decodeAudioData(bytes)), sampleRate: FILE_RATE_HZ };
}

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, Math.max(0, seconds * 1000)));

/** Float samples in [-1, 1] as 16-bit integers; an Int16Array is returned unchanged. */
export function to16Bit(samples) {
  if (samples instanceof Int16Array) return samples;
  return Int16Array.from(samples, (value) => Math.max(-32768, Math.min(32767, Math.round(value * 32767))));
}

/** Sends mono PCM as one utterance, at most AHEAD_S ahead of real time, until its end or `signal` aborts. */
export async function sendPcm(conversation, id, { pcm, sampleRate }, signal) {
  const piece = Math.round(sampleRate * PIECE_S);
  const began = performance.now() / 1000;
  conversation.send({ type: "speech.start", id, sample_rate: sampleRate, channels: 1 });
  for (let start = 0; start < pcm.length && !signal.aborted; start += piece) {
    const ahead = began + start / sampleRate - performance.now() / 1000 - AHEAD_S;
    if (ahead > 0) await pause(ahead);
    while (conversation.backlogBytes > BACKLOG_BYTES && !signal.aborted) await pause(PIECE_S);
    if (signal.aborted || !conversation.send({ type: "speech.audio", id, pcm: base64(pcm.subarray(start, start + piece)) })) break;
  }
  conversation.send({ type: "speech.end", id });
}

/** The microphone as one long utterance; echo cancellation keeps the avatar from hearing itself. */
export class Microphone {
  #stream = null;
  #context = null;
  #stopped = false;
  #announced = false;

  /** Whether speech.start was sent: only then can the utterance be ended. */
  get announced() {
    return this.#announced;
  }

  async start(conversation, id, onLevel) {
    // Browsers give microphones only to secure contexts.
    if (!navigator.mediaDevices) throw new Error("it needs a page from https or localhost");
    this.#stream = await navigator.mediaDevices.getUserMedia({
      audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 },
    });
    if (this.#stopped) return this.stop(); // while the browser was asking
    try {
      this.#context = new AudioContext({ sampleRate: 48000 });
      this.#context.createMediaStreamSource(this.#stream);
    } catch {
      // Firefox connects a microphone only to a context of the microphone's rate
      this.#context = new AudioContext();
    }
    await this.#context.audioWorklet.addModule(new URL("microphone.js", import.meta.url));
    if (this.#stopped) return;
    const source = this.#context.createMediaStreamSource(this.#stream);
    const worklet = new AudioWorkletNode(this.#context, "microphone", { numberOfOutputs: 0 });
    this.#announced = conversation.send({ type: "speech.start", id, sample_rate: this.#context.sampleRate, channels: 1 });
    worklet.port.onmessage = ({ data }) => {
      onLevel(data.level);
      conversation.send({ type: "speech.audio", id, pcm: base64(new Int16Array(data.pcm)) });
    };
    source.connect(worklet);
  }

  stop() {
    this.#stopped = true;
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    this.#context?.close();
    this.#stream = this.#context = null;
  }
}
