// A job of the server in its tab: the upload of a form, its progress, its end, and errors below the fields they concern.

import { Refusal, request, upload } from "./request.js";
import { jobErrorInWords, stageInWords, timeLeft } from "./wording.js";

export class Job {
  #options;
  #parts;
  #job = null; // {url, token}
  #events = null;
  #sending = null; // AbortController of the upload

  /**
   * The elements of the class `work` in `root` show progress, those of `done` the result; `form` is a list of elements.
   * list, post: addresses of all jobs and of uploads.  kind: of the events; the tab's storage keeps the job under it.
   * user: {key(), askKey(refused)}.  fields: ids of inputs, each with an element ID-error; the last is the submit button.
   * inputs: ids by the server's names of fields.  finished(state): shows the result.
   */
  constructor(options) {
    this.#options = options;
    const { root, form } = options;
    this.#parts = { form, work: [root.querySelector(".work")], done: [root.querySelector(".done")] };
    this.#find(".cancel").onclick = () => this.cancel();
  }

  /** The job that is shown, or null. */
  get current() {
    return this.#job;
  }

  /** Shows the job that this tab knows, and resolves to the server's limits, or null. */
  async open() {
    const { list, kind } = this.#options;
    try {
      const { limits } = await (await this.asked((token) => request("GET", list, { token }))).json();
      const stored = JSON.parse(sessionStorage.getItem(kind) ?? "null");
      if (stored && !this.#job) this.#follow(stored);
      return limits;
    } catch (error) {
      this.fail(error);
      this.#submit.disabled = error instanceof Refusal && error.status === 403;
      return null;
    }
  }

  /** The answer to a request that needs the server's key, which the user is asked for as long as it is wrong. */
  async asked(send) {
    const { user } = this.#options;
    for (;;) {
      const key = user.key();
      try {
        return await send(key);
      } catch (error) {
        if (!(error instanceof Refusal) || error.status !== 401) throw error;
        if (!(await user.askKey(key || null))) throw error;
      }
    }
  }

  async start(form) {
    this.#sending = new AbortController();
    const { signal } = this.#sending;
    const onProgress = (share) => this.#showWork({ stage: "upload", done: share, total: 1 });
    this.show("work");
    onProgress(0);
    try {
      const answer = await this.asked((token) => upload(this.#options.post, form, { token, onProgress, signal }));
      this.#follow({ url: answer.urls.self, token: answer.token });
    } catch (error) {
      this.show("form");
      if (error.name !== "AbortError") this.fail(error);
    }
  }

  async cancel() {
    this.#sending?.abort(new DOMException("cancelled", "AbortError"));
    if (!this.#job) return;
    this.#events.close();
    await this.end();
  }

  /** Brings the form back and has the server delete the job, which it otherwise does after a while. */
  async end() {
    const ended = this.#job;
    this.#forget();
    this.show("form");
    if (ended) await request("DELETE", ended.url, { token: ended.token }).catch(() => {});
  }

  /** Shows one of the parts of the tab: form, work or done. */
  show(part) {
    for (const [name, elements] of Object.entries(this.#parts)) for (const element of elements) element.hidden = name !== part;
  }

  /** Shows an error of the server below the field that it concerns. */
  fail(error) {
    this.tell(this.#options.inputs[error.field] ?? error.field, jobErrorInWords(error));
  }

  tell(id, text) {
    const field = this.#options.fields.includes(id) ? document.getElementById(id) : this.#submit;
    const details = field.closest("details");
    if (details) details.open = true;
    field.setAttribute("aria-invalid", String(field !== this.#submit));
    const error = document.getElementById(`${field.id}-error`);
    error.textContent = text;
    error.hidden = false;
    field.focus();
  }

  forgetError(id) {
    document.getElementById(id).removeAttribute("aria-invalid");
    document.getElementById(`${id}-error`).hidden = true;
  }

  forgetErrors() {
    for (const id of this.#options.fields) this.forgetError(id);
  }

  get #submit() {
    return document.getElementById(this.#options.fields.at(-1));
  }

  #find(selector) {
    return this.#options.root.querySelector(selector);
  }

  /** Shows a job until its end. */
  #follow(job) {
    const { kind } = this.#options;
    this.#job = job;
    sessionStorage.setItem(kind, JSON.stringify(job));
    this.show("work");
    const events = new EventSource(`${job.url}/events?token=${encodeURIComponent(job.token)}`); // it then names addresses with tokens
    this.#events = events;
    events.addEventListener(kind, ({ data }) => this.#showJob(JSON.parse(data)));
    events.onerror = () => events.readyState === EventSource.CLOSED && this.#explainLoss(); // else the browser connects again
  }

  /** Explains why the events ended early: the server has no such job any more. A page that is being left asks in vain. */
  async #explainLoss() {
    const { url, token } = this.#job;
    try {
      this.#showJob(await (await request("GET", url, { token })).json());
    } catch (error) {
      if (!(error instanceof Refusal)) return;
      this.#forget();
      this.show("form");
      const { kind } = this.#options;
      this.tell(null, `The server no longer has this ${kind}: it was deleted, or the server was restarted. Start it again.`);
    }
  }

  #showJob(state) {
    if (["waiting", "running"].includes(state.status)) return this.#showWork(state);
    this.#events.close();
    if (state.status === "finished") {
      this.show("done");
      this.#showRemarks(".done", state.remarks);
      this.#options.finished(state);
      this.#find(".done h2").focus({ preventScroll: true });
      return;
    }
    this.#forget();
    this.show("form");
    if (state.error) this.fail(state.error);
  }

  #showWork(state) {
    const { done, total, remarks = [] } = state;
    const [stage, progress] = [this.#find(".stagetext"), this.#find("progress")];
    const text = stageInWords(state);
    if (stage.textContent !== text) stage.textContent = text; // or it would be read again
    if (total > 0) progress.value = done / total;
    else progress.removeAttribute("value");
    this.#find(".timeleft").textContent = timeLeft(state.left_s);
    this.#showRemarks(".work", remarks);
  }

  #showRemarks(part, remarks) {
    const list = this.#find(`${part} .remarks`);
    if (list.childElementCount === remarks.length) return;
    list.replaceChildren(...remarks.map(({ text }) => Object.assign(document.createElement("li"), { textContent: text })));
  }

  #forget() {
    this.#job = null;
    sessionStorage.removeItem(this.#options.kind);
  }
}
