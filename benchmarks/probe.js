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

  // Luma of the part [left, top, width, height] of a picture, px, averaged over squares of CELL px. Only this part
  // is copied out of the decoder's picture, and nothing is converted to RGB: a canvas would convert all of it.
  const CELL = 4;
  const lumaOf = async (frame, [left, top, width, height]) => {
    const even = (value) => Math.round(value / 2) * 2; // colour has half the resolution
    const rect = { x: even(left), y: even(top), width: even(width), height: even(height) };
    const planes = new Uint8Array(frame.allocationSize({ rect }));
    const [{ offset, stride }] = await frame.copyTo(planes, { rect });
    const columns = Math.floor(rect.width / CELL);
    const sums = new Float32Array(columns * Math.floor(rect.height / CELL));
    for (let y = 0; y < Math.floor(rect.height / CELL) * CELL; y++) {
      const row = offset + y * stride;
      const cells = Math.floor(y / CELL) * columns;
      for (let x = 0; x < columns * CELL; x++) sums[cells + Math.floor(x / CELL)] += planes[row + x];
    }
    return sums.map((sum) => sum / CELL ** 2);
  };
  const meanOf = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

  /** Watch the pictures of a <video>. [left, top, width, height]: the mouth, in parts of the frame. */
  probe.watch = (video, [left, top, width, height]) => {
    let before = null;
    const see = async (now, { expectedDisplayTime, width: w, height: h }) => {
      video.requestVideoFrameCallback(see);
      const frame = new VideoFrame(video);
      const [mouth, corner] = await Promise.all([
        lumaOf(frame, [left * w, top * h, width * w, height * h]),
        lumaOf(frame, [0, 0, w / 16, h / 16]),
      ]);
      frame.close();
      const change = before ? meanOf(mouth.map((value, i) => Math.abs(value - before[i]))) : 0;
      before = mouth;
      probe.frames.push([now, expectedDisplayTime, change, meanOf(corner)]);
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
