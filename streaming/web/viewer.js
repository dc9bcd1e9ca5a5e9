// Receives one session: WHEP (draft-ietf-wish-whep) with trickled candidates (RFC 8840).

import { request } from "./request.js";

// The same buffer for sound and picture from the first frame on. By default a browser starts with two different
// buffers and takes ten seconds and more to synchronise lips and voice.
const BUFFER_MS = 80;

/** Events: "stream" {detail: MediaStream}, "path" {detail: the RTCPeerConnection's connectionState}. */
export class Viewer extends EventTarget {
  #token;
  #peer;
  #resource = null; // URL and ETag for candidates, once the server has answered
  #waiting = []; // candidates found before that

  constructor(iceServers, token) {
    super();
    this.#token = token;
    const peer = (this.#peer = new RTCPeerConnection({ bundlePolicy: "max-bundle", iceServers }));
    const stream = new MediaStream();
    for (const kind of ["video", "audio"]) peer.addTransceiver(kind, { direction: "recvonly" });
    peer.ontrack = ({ track, receiver }) => {
      receiver.jitterBufferTarget = BUFFER_MS;
      stream.addTrack(track);
      if (stream.getTracks().length === 2) this.dispatchEvent(new CustomEvent("stream", { detail: stream }));
    };
    peer.onconnectionstatechange = () => this.dispatchEvent(new CustomEvent("path", { detail: peer.connectionState }));
    peer.onicecandidate = ({ candidate }) => {
      this.#waiting.push(candidate);
      if (this.#resource) this.#trickle();
    };
  }

  get connected() {
    return this.#peer.connectionState === "connected";
  }

  /** Requests picture and sound; ICE then searches for a path. Throws Refusal, Unreachable. */
  async join(url) {
    await this.#peer.setLocalDescription();
    const headers = { "Content-Type": "application/sdp" };
    const response = await request("POST", url, { token: this.#token, headers, body: this.#peer.localDescription.sdp });
    const answer = await response.text();
    if (this.#peer.connectionState === "closed") return;
    this.#resource = { url: new URL(response.headers.get("Location"), url), etag: response.headers.get("ETag") };
    await this.#peer.setRemoteDescription({ type: "answer", sdp: answer });
    if (this.#waiting.length) this.#trickle();
  }

  stats() {
    return this.#peer.getStats();
  }

  close() {
    this.#peer.close();
  }

  #trickle() {
    const sdp = this.#peer.localDescription?.sdp ?? "";
    const lines = ["ice-ufrag", "ice-pwd"].map((name) => sdp.match(new RegExp(`^a=${name}:.*$`, "m"))?.[0].trim());
    lines.push("m=video 9 UDP/TLS/RTP/SAVPF 0", "a=mid:0");
    for (const found of this.#waiting.splice(0)) {
      lines.push(found?.candidate ? `a=${found.candidate}` : "a=end-of-candidates");
    }
    const headers = { "Content-Type": "application/trickle-ice-sdpfrag", "If-Match": this.#resource.etag };
    const body = `${lines.join("\r\n")}\r\n`;
    // A refused or lost candidate costs one path, not the viewer: others may work.
    request("PATCH", this.#resource.url, { token: this.#token, headers, body }).catch(() => {});
  }
}
