// One conversation with the server: a session, its picture and sound (WHEP), and the speech websocket.

const RETRIES_MS = [500, 1000, 2000, 4000];
// The same buffer for sound and picture from the first frame on. Left alone, a browser starts with whatever each
// happened to gather, and takes ten seconds and more to bring the lips back to the voice.
const BUFFER_MS = 80;

/** The server's refusal, as its problem document explains it. */
export class Refusal extends Error {
  constructor(status, code, detail) {
    super(detail);
    this.status = status;
    this.code = code;
  }
}

export async function request(method, url, options = {}) {
  const response = await fetch(url, { method, ...options });
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new Refusal(response.status, problem.code ?? "http", problem.detail ?? `${response.status} ${response.statusText}`);
}

/** The server's key, where it wants one: from ?key= in the address, which it leaves at once, kept for this tab. */
function knownKey() {
  const address = new URL(location.href);
  const given = address.searchParams.get("key");
  if (given) {
    sessionStorage.setItem("key", given);
    address.searchParams.delete("key");
    history.replaceState(null, "", address);
  }
  return sessionStorage.getItem("key");
}

knownKey();

/** A session that a program on this machine has opened and speaks through, from the address. */
function givenSession() {
  const address = new URL(location.href).searchParams;
  const id = address.get("session");
  if (!id) return null;
  const path = `/v1/sessions/${encodeURIComponent(id)}`;
  return { id, token: address.get("token"), whep: `${path}/whep`, speech: `${path}/speech`, ice_servers: [], given: true };
}

async function openSession(avatar) {
  const post = (key) => {
    const authorization = key ? { Authorization: `Bearer ${key}` } : {};
    const headers = { "Content-Type": "application/json", ...authorization };
    return request("POST", "/v1/sessions", { body: JSON.stringify({ avatar }), headers });
  };
  try {
    return await post(knownKey());
  } catch (error) {
    const key = error.status === 401 ? prompt("This server asks for its key:") : null;
    if (!key) throw error;
    const response = await post(key);
    sessionStorage.setItem("key", key);
    return response;
  }
}

/**
 * Events: "state" {detail: {name, text}}, where name is opening | connecting | live | lost | closed,
 * "stream" {detail: MediaStream}, and "message" {detail: a server message of the speech protocol}.
 */
export class Conversation extends EventTarget {
  #info = null;
  #peer = null;
  #viewer = null;
  #socket = null;
  #closed = false;
  #attempt = 0;

  get live() {
    return !this.#closed && this.#socket?.readyState === WebSocket.OPEN;
  }

  get backlogBytes() {
    return this.#socket?.bufferedAmount ?? 0;
  }

  async open(avatar) {
    this.#tell("opening", "Opening a session…");
    this.#info = givenSession() ?? (await (await openSession(avatar)).json());
    if (this.#closed) return this.#forget();
    this.#renewLater();
    this.#openSocket();
    await this.#watch();
  }

  /** One message of the speech protocol; false if there is no connection to send it on. */
  send(message) {
    if (!this.live) return false;
    this.#socket.send(JSON.stringify(message));
    return true;
  }

  async stats() {
    return this.#peer ? this.#peer.getStats() : new Map();
  }

  close(name = "closed", text = "Stopped.") {
    if (this.#closed) return;
    this.#closed = true;
    this.#peer?.close();
    this.#socket?.close();
    this.#forget();
    this.#tell(name, text);
  }

  #forget() {
    if (!this.#info || this.#info.given) return;
    fetch(`/v1/sessions/${this.#info.id}`, { method: "DELETE", headers: this.#bearer(), keepalive: true }).catch(() => {});
  }

  /** Tokens expire, and a connection that is lost later needs a good one. */
  #renewLater() {
    if (this.#info.given) return; // its program decides how long it is good
    setTimeout(async () => {
      if (this.#closed) return;
      const url = `/v1/sessions/${this.#info.id}/token`;
      const response = await request("POST", url, { headers: this.#bearer() }).catch(() => null);
      if (!response) return;
      Object.assign(this.#info, await response.json());
      this.#renewLater();
    }, this.#info.expires_in_s * 500);
  }

  #bearer() {
    return { Authorization: `Bearer ${this.#info.token}` };
  }

  #tell(name, text) {
    this.dispatchEvent(new CustomEvent("state", { detail: { name, text } }));
  }

  #openSocket() {
    const url = new URL(this.#info.speech, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    url.searchParams.set("token", this.#info.token);
    const socket = (this.#socket = new WebSocket(url));
    socket.onmessage = ({ data }) => this.dispatchEvent(new CustomEvent("message", { detail: JSON.parse(data) }));
    socket.onclose = ({ reason }) => {
      const why = reason.includes(": ") ? `: ${reason.slice(reason.indexOf(": ") + 2)}` : "";
      this.close("lost", `The server ended the session${why}. Press Start to open a new one.`);
    };
  }

  async #watch() {
    this.#tell("connecting", "Connecting: looking for a network path to the server…");
    const peer = (this.#peer = new RTCPeerConnection({ bundlePolicy: "max-bundle", iceServers: this.#info.ice_servers }));
    const stream = new MediaStream();
    peer.addTransceiver("video", { direction: "recvonly" });
    peer.addTransceiver("audio", { direction: "recvonly" });
    peer.ontrack = ({ track, receiver }) => {
      receiver.jitterBufferTarget = BUFFER_MS;
      stream.addTrack(track);
      if (stream.getTracks().length === 2) this.dispatchEvent(new CustomEvent("stream", { detail: stream }));
    };
    peer.onconnectionstatechange = () => this.#follow(peer);
    const waiting = []; // candidates found before the server has told where to send them
    peer.onicecandidate = ({ candidate }) => {
      if (this.#viewer) this.#trickle(peer, [candidate]);
      else waiting.push(candidate);
    };
    this.#viewer = null;
    await peer.setLocalDescription();
    const response = await request("POST", this.#info.whep, {
      body: peer.localDescription.sdp,
      headers: { ...this.#bearer(), "Content-Type": "application/sdp" },
    });
    this.#viewer = { url: response.headers.get("Location"), etag: response.headers.get("ETag") };
    await peer.setRemoteDescription({ type: "answer", sdp: await response.text() });
    if (waiting.length) this.#trickle(peer, waiting);
  }

  #trickle(peer, candidates) {
    const sdp = peer.localDescription?.sdp ?? "";
    const lines = ["ice-ufrag", "ice-pwd"].map((name) => sdp.match(new RegExp(`^a=${name}:.*$`, "m"))?.[0].trim());
    lines.push("m=video 9 UDP/TLS/RTP/SAVPF 0", "a=mid:0");
    for (const candidate of candidates) lines.push(candidate?.candidate ? `a=${candidate.candidate}` : "a=end-of-candidates");
    const headers = { ...this.#bearer(), "Content-Type": "application/trickle-ice-sdpfrag", "If-Match": this.#viewer.etag };
    fetch(this.#viewer.url, { method: "PATCH", body: `${lines.join("\r\n")}\r\n`, headers }).catch(() => {});
  }

  #follow(peer) {
    if (peer !== this.#peer || this.#closed) return;
    if (peer.connectionState === "connected") {
      this.#attempt = 0;
      this.#tell("live", "Live");
    } else if (peer.connectionState === "disconnected") {
      this.#tell("connecting", "The connection is interrupted; waiting for it to come back…");
    } else if (peer.connectionState === "failed") {
      this.#again(peer);
    }
  }

  #again(peer) {
    peer.close();
    const wait = RETRIES_MS[this.#attempt++];
    if (wait === undefined) {
      this.close("lost", "No network path to the server. It must reach this browser over UDP: a firewall may be in the way.");
      return;
    }
    this.#tell("connecting", "The connection was lost; trying again…");
    setTimeout(() => {
      if (this.#closed) return;
      this.#watch().catch((error) => this.close("lost", `The connection was lost: ${error.message}`));
    }, wait);
  }
}
