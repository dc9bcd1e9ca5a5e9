// Measures inside the page, and runs before the page's own scripts: messages sent and received, pictures, sound.
// All times are performance.now() milliseconds.

window.probe = {
  peer: null,
  sent: [], // [time, type, sound sent so far in this utterance in ms]
  received: [], // [time, message]
  frames: [], // [time, expected display time, change of the mouth against the frame before, brightness of the corner]
  sound: [], // [time, level]
  skews: [], // [time, how far the browser says that picture is ahead of sound, in ms]
};

{
  const { probe } = window;

  window.RTCPeerConnection = class extends RTCPeerConnection {
    constructor(...options) {
      super(...options);
      probe.peer = this;
    }
  };

  let rate = 0;
  let sentBytes = 0;
  window.WebSocket = class extends WebSocket {
    constructor(...options) {
      super(...options);
      this.addEventListener("message", ({ data }) => probe.received.push([performance.now(), JSON.parse(data)]));
    }
    send(data) {
      const message = JSON.parse(data);
      if (message.type === "speech.start") [rate, sentBytes] = [message.sample_rate, 0];
      if (message.type === "speech.audio") sentBytes += (message.pcm.length * 3) / 4;
      super.send(data);
      probe.sent.push([performance.now(), message.type, rate ? (sentBytes / 2 / rate) * 1000 : 0]);
    }
  };

  /** Watch the pictures of a <video>. [left, top, width, height]: the mouth, in parts of the frame. */
  probe.watch = (video, [left, top, width, height]) => {
    const canvas = new OffscreenCanvas(48, 32);
    const pen = canvas.getContext("2d", { willReadFrequently: true });
    let before = null;
    const see = (now, { expectedDisplayTime, width: w, height: h }) => {
      video.requestVideoFrameCallback(see);
      pen.drawImage(video, left * w, top * h, width * w, height * h, 0, 0, 44, 32);
      pen.drawImage(video, 0, 0, w / 16, h / 16, 44, 0, 4, 4);
      const { data } = pen.getImageData(0, 0, 48, 32);
      const grey = new Float32Array(44 * 32);
      for (let y = 0, i = 0; y < 32; y++) {
        for (let x = 0; x < 44; x++) {
          const at = (y * 48 + x) * 4;
          grey[i++] = 0.299 * data[at] + 0.587 * data[at + 1] + 0.114 * data[at + 2];
        }
      }
      let change = 0;
      if (before) grey.forEach((value, i) => (change += Math.abs(value - before[i]) / grey.length));
      before = grey;
      const corner = (48 + 46) * 4;
      probe.frames.push([now, expectedDisplayTime, change, data[corner + 1]]);
    };
    video.requestVideoFrameCallback(see);
  };

  const METER = `
    registerProcessor("meter", class extends AudioWorkletProcessor {
      constructor() {
        super();
        this.levels = [];
      }
      process([[samples]]) {
        let sum = 0;
        for (const value of samples ?? []) sum += value * value;
        this.levels.push([currentTime, Math.sqrt(sum / 128)]);
        if (this.levels.length >= 16) {
          this.port.postMessage(this.levels);
          this.levels = [];
        }
        return true;
      }
    });`;

  /** Listen to a stream's sound: one level for each 2.7 ms, at the time at which it leaves the loudspeaker. */
  probe.listen = async (stream) => {
    const context = new AudioContext({ sampleRate: 48000, latencyHint: "interactive" });
    await context.audioWorklet.addModule(URL.createObjectURL(new Blob([METER], { type: "text/javascript" })));
    const meter = new AudioWorkletNode(context, "meter", { numberOfOutputs: 1 });
    context.createMediaStreamSource(new MediaStream(stream.getAudioTracks())).connect(meter);
    const mute = new GainNode(context, { gain: 0 });
    meter.connect(mute).connect(context.destination); // a node that leads nowhere is not run
    meter.port.onmessage = ({ data }) => {
      const { contextTime, performanceTime } = context.getOutputTimestamp();
      if (!performanceTime) return;
      for (const [at, level] of data) probe.sound.push([performanceTime + (at - contextTime) * 1000, level]);
    };
    await context.resume();
  };

  /** The receiver's statistics: { video, audio, rtt }. */
  probe.stats = async () => {
    const stats = {};
    for (const report of (await probe.peer.getStats()).values()) {
      if (report.type === "inbound-rtp") stats[report.kind] = { ...report };
      if (report.type === "candidate-pair" && report.nominated) stats.rtt = report.currentRoundTripTime;
    }
    return stats;
  };

  setInterval(async () => {
    if (!probe.peer || probe.peer.connectionState !== "connected") return;
    const { video, audio } = await probe.stats();
    const skew = video?.estimatedPlayoutTimestamp - audio?.estimatedPlayoutTimestamp;
    if (Number.isFinite(skew)) probe.skews.push([performance.now(), skew]);
  }, 1000);
}
