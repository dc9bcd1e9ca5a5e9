// One conversation with the server: a session, its picture and sound, and its speech websocket. Lost connections are
// opened again; a session that the server ended stays ended.

import { Refusal, Unreachable, request } from "./request.js";
import { Viewer } from "./viewer.js";

const BACK_OFF_S = [0.5, 1, 2, 4, 8, 15, 30];
const PATIENCE_MS = 4000; // wait for a path that is disconnected; a browser gives it up 15 s later
const NODE_MS = 2000; // wait for a cluster's node; one that is switched off does not refuse
const SEARCH_MS = 15_000; // search for a path; an existing one is found within a second
// further tries of a path or a websocket while the server answers: for a session that was never live, and for one that was
const TRIES = { fresh: 2, proven: 6 };
const GONE = [401, 404, 410]; // answers for a session that ended while the websocket was down

/** The server ended the session, for a reason. */
class Ended extends Error {
  constructor(reason, detail) {
    super(detail);
    this.reason = reason;
  }
}

/** No path for picture and sound (`no-path`), or for the websocket (`no-socket`). */
class Lost extends Error {
  constructor(reason) {
    super(reason);
    this.reason = reason;
  }
}

/**
 * Events: "stream" {detail: MediaStream}, "message" {detail: a server message of the speech protocol}, and "state"
 * {detail: {name, reason, detail, retryInS}}. The states are
 *
 *   connecting    opens a session, then searches for a path
 *   live          picture and sound arrive, the avatar can speak
 *   reconnecting  opens again the connection that was lost (`reason`)
 *   waiting       refused for now, or no server (`reason`, `detail`): the next try is in `retryInS`
 *   closing       the server will end the session; speech that was begun is played
 *   ended         over; `reason`: one of the server's, the code of its refusal, no-path, no-socket, stopped
 */
export class Conversation extends EventTarget {
  #server;
  #avatar;
  #source; // the session, or a function that opens one; null: this class opens it
  #key;
  #askKey;
  #session = null;
  #viewer = null;
  #socket = null;
  #proven = false; // this session was live
  #ended = null; // the reason, once the server has sent it
  #over = false;
  #lost = null; // promise of the current connection: resolves to the loss
  #fail = () => {};
  #wake = () => {};
  #renewal = 0;

  /**
   * server: its address.  session: the answer of POST /v1/sessions to another program, or a function (avatar) that
   * returns it.  key: a key of the server.  askKey: a function (refused) that returns a key when the server requires one, or null.
   */
  constructor({ server, avatar, session = null, key = null, askKey = null }) {
    super();
    this.#server = server;
    this.#avatar = avatar;
    this.#source = session;
    this.#key = key;
    this.#askKey = askKey;
  }

  get backlogBytes() {
    return this.#socket?.bufferedAmount ?? 0;
  }

  /** Connects, and reconnects until the end; events report the state. */
  async open() {
    for (let tries = 0; !this.#over; ) {
      let loss;
      try {
        await this.#connect();
        if (this.#over) return;
        tries = 0;
        this.#tell("live");
        loss = await this.#lost;
      } catch (error) {
        loss = error;
      }
      if (this.#over) return;
      if (loss.reason === "no-path") this.#leave();
      const { waitS, ...state } = this.#plan(loss, tries++);
      if (waitS === undefined) return this.#finish(state);
      this.#tell(state.name, { ...state, retryInS: waitS });
      await this.#pause(waitS);
    }
  }

  /** Tries again now, if it waits. */
  retry() {
    this.#wake();
  }

  /** Sends a message of the speech protocol; returns false without an open connection. */
  send(message) {
    if (this.#over || this.#socket?.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(JSON.stringify(message));
    return true;
  }

  async stats() {
    return this.#viewer ? this.#viewer.stats() : new Map();
  }

  close() {
    if (!this.#over) this.#finish({ name: "ended", reason: "stopped" });
  }

  get #given() {
    return this.#source !== null && typeof this.#source !== "function";
  }

  async #connect() {
    if (this.#ended) throw this.#ended;
    const lost = (this.#lost = new Promise((resolve) => (this.#fail = resolve)));
    const until = (work) => Promise.race([work, lost.then((error) => Promise.reject(error))]);
    if (!this.#proven) this.#tell("connecting", { reason: this.#session ? "path" : "session" });
    if (this.#session && !this.#given) await this.#renew();
    if (!this.#session) await this.#begin();
    if (this.#over) return;
    if (!this.#viewer?.connected) await this.#watch(until);
    if (this.#socket?.readyState !== WebSocket.OPEN) await until(this.#listen());
    this.#proven = true;
  }

  async #begin() {
    const session = await this.#openSession();
    this.#session = session;
    if (this.#over) return this.#forget();
    this.#proven = false;
    this.#tell("connecting", { reason: "path" });
    if (!this.#given) this.#renewLater();
  }

  async #openSession() {
    if (this.#source !== null) return this.#given ? this.#source : this.#source(this.#avatar);
    const body = JSON.stringify({ avatar: this.#avatar });
    const headers = { "Content-Type": "application/json" };
    for (;;) {
      try {
        return await (await request("POST", this.#at("v1/sessions"), { token: this.#key, headers, body })).json();
      } catch (error) {
        if (error.status !== 401 || !this.#askKey) throw error;
        const key = await this.#askKey(this.#key);
        if (!key || this.#over) throw error;
        this.#key = key;
      }
    }
  }

  async #watch(until) {
    this.#leave();
    const viewer = (this.#viewer = new Viewer(this.#session.ice_servers, this.#session.token));
    const found = new Promise((resolve) => {
      const giveUp = () => viewer === this.#viewer && this.#fail(new Lost("no-path"));
      const search = setTimeout(giveUp, SEARCH_MS);
      let silence = 0;
      viewer.addEventListener("path", ({ detail: state }) => {
        if (viewer !== this.#viewer) return;
        if (state === "failed") giveUp();
        if (state === "connected") resolve();
        if (state === "connected" && silence) this.#tell("live");
        if (state === "connected") clearTimeout(search);
        clearTimeout(silence);
        silence = state === "disconnected" ? setTimeout(giveUp, PATIENCE_MS) : 0;
        if (silence) this.#tell("reconnecting", { reason: "interrupted" });
      });
    });
    viewer.addEventListener("stream", ({ detail }) => this.dispatchEvent(new CustomEvent("stream", { detail })));
    await until(viewer.join(this.#at(this.#session.whep)));
    await until(found);
  }

  /** Opens the speech websocket; its end calls #fail. */
  #listen() {
    const url = this.#at(this.#session.speech);
    url.protocol = url.protocol.replace("http", "ws");
    url.searchParams.set("token", this.#session.token);
    const socket = (this.#socket = new WebSocket(url));
    socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      if (message.type === "session.closing") this.#tell("closing", message);
      this.dispatchEvent(new CustomEvent("message", { detail: message }));
    };
    socket.onclose = ({ reason }) => {
      if (socket !== this.#socket) return;
      const [, name, detail] = /^([a-z-]+): (.*)$/s.exec(reason) ?? [];
      if (name) this.#ended = new Ended(name, detail);
      this.#fail(this.#ended ?? new Lost("no-socket"));
      if (name) this.#wake();
    };
    return new Promise((resolve) => (socket.onopen = resolve));
  }

  /** The state after a loss, and how long to wait in it; without `waitS` the conversation ends. */
  #plan(loss, tries) {
    // a random part, so that clients do not return to a restarted server all at once
    const backOffS = BACK_OFF_S[Math.min(tries, BACK_OFF_S.length - 1)] * (0.75 + Math.random() / 2);
    const name = this.#proven ? "reconnecting" : "waiting";
    if (loss instanceof Ended) {
      if (loss.reason !== "draining" || this.#given) return { name: "ended", reason: loss.reason, detail: loss.message };
      this.#renounce();
      return { name: "waiting", reason: "draining", waitS: Math.max(2, backOffS) };
    }
    if (loss instanceof Unreachable) return { name, reason: "unreachable", waitS: backOffS };
    if (loss instanceof Lost) {
      if (tries >= (this.#proven ? TRIES.proven : TRIES.fresh)) return { name: "ended", reason: loss.reason };
      return { name: this.#proven ? "reconnecting" : "connecting", reason: loss.reason, waitS: backOffS };
    }
    if (GONE.includes(loss.status) && this.#proven && !this.#given) {
      this.#renounce();
      return { name: "connecting", reason: loss.code === "node-lost" ? loss.code : "session", waitS: 0 };
    }
    const said = { reason: loss.code ?? "failed", detail: loss.message };
    if (loss instanceof Refusal && loss.retryAfterS) return { name, ...said, waitS: loss.retryAfterS };
    return { name: "ended", ...said };
  }

  /** Waits, at most until `retry()` is called, the device is online again, or the page is visible again. */
  async #pause(seconds) {
    const seen = () => document.hidden || this.#wake();
    const timers = new AbortController();
    addEventListener("online", () => this.#wake(), timers);
    document.addEventListener("visibilitychange", seen, timers);
    const timer = setTimeout(() => this.#wake(), seconds * 1000);
    await new Promise((resolve) => (this.#wake = resolve));
    clearTimeout(timer);
    timers.abort();
  }

  /** Gets another token while this one is valid: later connections need it. Fails if the session is gone. */
  async #renew() {
    const { id, token, url } = this.#session;
    const limit = () => (url ? { signal: AbortSignal.timeout(NODE_MS) } : {});
    try {
      Object.assign(this.#session, await (await request("POST", `${this.#address}/token`, { token, ...limit() })).json());
    } catch (error) {
      // The node of a cluster does not answer: the server knows whether it is gone, and with it the session.
      if (url && error instanceof Unreachable) await request("GET", this.#at(`v1/sessions/${id}`), limit());
      throw error;
    }
    this.#renewLater();
  }

  /** The session's address: a cluster names that of its node. */
  get #address() {
    return this.#session.url ?? this.#at(`v1/sessions/${this.#session.id}`);
  }

  #renewLater() {
    clearTimeout(this.#renewal);
    this.#renewal = setTimeout(() => this.#renew().catch(() => {}), this.#session.expires_in_s * 500);
  }

  #finish(state) {
    this.#over = true;
    this.#leave();
    this.#forget();
    this.#renounce();
    this.#wake();
    this.#tell(state.name, state);
  }

  #leave() {
    const viewer = this.#viewer;
    this.#viewer = null;
    viewer?.close();
  }

  /** Drops the session, its viewer and its websocket, without closing it at the server. */
  #renounce() {
    clearTimeout(this.#renewal);
    this.#leave();
    const socket = this.#socket;
    this.#session = this.#socket = this.#ended = null;
    this.#proven = false;
    socket?.close();
  }

  /** Closes the session at the server, unless another program opened it. */
  #forget() {
    if (!this.#session || this.#given || this.#ended) return;
    request("DELETE", this.#address, { token: this.#session.token, keepalive: true }).catch(() => {});
  }

  #at(path) {
    return new URL(path, this.#server);
  }

  #tell(name, { reason = null, detail = null, retryInS = null } = {}) {
    this.dispatchEvent(new CustomEvent("state", { detail: { name, reason, detail, retryInS } }));
  }
}
