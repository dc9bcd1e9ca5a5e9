// window.watch[name](url, token) plays the stream of `url` in the page's <video> and returns a function that ends it.
import { WebRTCPlayer } from "@eyevinn/webrtc-player";
import { WHEPClient } from "whip-whep/whep.js";

const video = document.querySelector("video");
const peers = [];
window.RTCPeerConnection = class extends RTCPeerConnection {
  constructor(...settings) {
    super(...settings);
    peers.push(this);
  }
};

window.watch = {
  async "@eyevinn/webrtc-player"(url, token) {
    const player = new WebRTCPlayer({ video, type: "whep", iceServers: [] });
    await player.load(new URL(url), `Bearer ${token}`);
    return () => player.destroy();
  },
  async "whip-whep"(url, token) {
    const peer = new RTCPeerConnection({ bundlePolicy: "max-bundle" });
    for (const kind of ["audio", "video"]) peer.addTransceiver(kind, { direction: "recvonly" });
    peer.ontrack = ({ streams }) => (video.srcObject = streams[0]);
    const player = new WHEPClient();
    await player.view(peer, url, token);
    return () => player.stop();
  },
};

window.seen = { pictures: 0, changes: 0, loudest: 0 };
const thumbnail = new OffscreenCanvas(64, 64).getContext("2d", { willReadFrequently: true });
let before;
setInterval(async () => {
  if (!video.videoWidth) return;
  thumbnail.drawImage(video, 0, 0, 64, 64);
  const { data } = thumbnail.getImageData(0, 0, 64, 64);
  if (before && data.some((value, place) => Math.abs(value - before[place]) > 8)) seen.changes += 1;
  before = data;
  Object.assign(seen, { width: video.videoWidth, height: video.videoHeight });
  for (const report of (await peers.at(-1).getStats()).values()) {
    if (report.type !== "inbound-rtp") continue;
    if (report.kind === "video") seen.pictures = report.framesDecoded ?? 0;
    if (report.kind === "audio") seen.loudest = Math.max(seen.loudest, report.audioLevel ?? 0);
    if (report.kind === "audio") seen.energy = report.totalAudioEnergy;
  }
}, 100);
