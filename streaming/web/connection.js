// One conversation with the server: a session, its picture and sound, and its speech websocket, for as long as it can
// be held. What is lost is sought again; what the server ends stays ended.

import { Refusal, Unreachable, request } from "./request.js";
import { Viewer } from "./viewer.js";

const BACK_OFF_S = [0.5, 1, 2, 4, 8, 15, 30];
const PATIENCE_MS = 4000; // with a path that is silent; a browser gives it up after 15 s more
const SEARCH_MS = 15_000; // for a path; one that is there is found within one
// more tries of a path or a websocket to a server that answers: of a session that was never live, and of one that was
const TRIES = { fresh: 2, proven: 6 };
const GONE = [401, 404, 410]; // what a session that ended while nobody could tell says

/** The server's word on why the session ended. */
class Ended extends Error {
  constructor(reason, detail) {
    super(detail);
    this.reason = reason;
  }
}

/** No way for picture and sound (`no-path`), or for the websocket (`no-socket`). */
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
 *   connecting    a session is opened, then a path is looked for
 *   live          seen, heard, and ready to speak
 *   reconnecting  what was lost (`reason`) is sought again
 *   waiting       refused for now, or nobody there (`reason`, `detail`): the next try is in `retryInS`
 *   closing       the server is about to end the session; what was begun is played
 *   ended         over, for a `reason`: one of the server's, the code of its refusal, no-path, no-socket, stopped
 */
export class Conversation extends EventTarget {
  #server;
  #avatar;
  #source; // the session, or a function that opens one; null: opened here
  #key;
  #askKey;
  #session = null;
  #viewer = null;
  #socket = null;
  #proven = false; // this session was live
  #ended = null; // why, once the server has said so
  #over = false;
  #lost = null; // of the connection that is being held: gives the reason once it is lost
  #fail = () => {};
  #wake = () => {};
  #renewal = 0;

  /**
   * server: its address.  session: what POST /v1/sessions answered to another program, or a function (avatar) that
   * gives it.  key: a key of the server.  askKey: a function (refused) that gives one when the server wants it, or null.
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

  /** Be live, and stay so until the end; events tell how it goes. */
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

  /** Try again now, if it waits. */
  retry() {
    this.#wake();
  }

  /** One message of the speech protocol; false if there is no connection to send it on. */
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
        return await (await request("POST", this.#at("/v1/sessions"), { token: this.#key, headers, body })).json();
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

  /** Open the speech websocket; its end is told by #fail. */
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

  /** What to do about a loss: the state to be in, and for how long; no `waitS`: it is the end. */
  #plan(loss, tries) {
    // not all at once, when a server comes back that many had lost
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
      return { name: "connecting", reason: "session", waitS: 0 };
    }
    const said = { reason: loss.code ?? "failed", detail: loss.message };
    if (loss instanceof Refusal && loss.retryAfterS) return { name, ...said, waitS: loss.retryAfterS };
    return { name: "ended", ...said };
  }

  /** Wait, but no longer than until there is a reason to try: somebody asks for it, the network or the page is back. */
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

  /** Another token while this one is good: connections that are lost later need it. Tells, too, that the session lives. */
  async #renew() {
    const url = this.#at(`/v1/sessions/${this.#session.id}/token`);
    Object.assign(this.#session, await (await request("POST", url, { token: this.#session.token })).json());
    this.#renewLater();
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

  /** The session is none of ours any more. */
  #renounce() {
    clearTimeout(this.#renewal);
    this.#leave();
    const socket = this.#socket;
    this.#session = this.#socket = this.#ended = null;
    this.#proven = false;
    socket?.close();
  }

  /** Close the session, unless another program opened it. */
  #forget() {
    if (!this.#session || this.#given || this.#ended) return;
    const url = this.#at(`/v1/sessions/${this.#session.id}`);
    request("DELETE", url, { token: this.#session.token, keepalive: true }).catch(() => {});
  }

  #at(path) {
    return new URL(path, this.#server);
  }

  #tell(name, { reason = null, detail = null, retryInS = null } = {}) {
    this.dispatchEvent(new CustomEvent("state", { detail: { name, reason, detail, retryInS } }));
  }
}
