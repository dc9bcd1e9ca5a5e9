// HTTP requests to the server: refusals with their reasons, and requests without an answer.

const TIMEOUT_MS = 20_000;

/** The server refused; fields as in its problem document. `retryAfterS` is set if trying again may work. */
export class Refusal extends Error {
  constructor(status, { code = "http", detail, field = null }, retryAfterS) {
    super(detail);
    this.status = status;
    this.code = code;
    this.field = field; // of the form that was sent
    this.retryAfterS = retryAfterS;
  }
}

/** No answer: no server, no network, or a server that does not admit this page's origin (browsers do not say which). */
export class Unreachable extends Error {}

/** The address of a picture that the server shows to holders of a key or token alone, or null; made for this document. */
export async function picture(url, token) {
  try {
    return URL.createObjectURL(await (await request("GET", url, { token })).blob());
  } catch {
    return null;
  }
}

/** The response to a request; `token` is a session's token or a key of the server. Throws Refusal, Unreachable. */
export async function request(method, url, { token, headers = {}, ...options } = {}) {
  const authorization = token ? { Authorization: `Bearer ${token}` } : {};
  let response;
  try {
    const signal = AbortSignal.timeout(TIMEOUT_MS);
    response = await fetch(url, { method, headers: { ...headers, ...authorization }, signal, ...options });
  } catch (error) {
    throw new Unreachable(error.message);
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw refusal(response.status, response.statusText, problem, response.headers.get("Retry-After"));
}

/** Sends a form and returns the answer's JSON; `onProgress(share)` says how much of it has been sent, which fetch cannot
 * tell. Throws Refusal, Unreachable; an AbortError once `signal` aborts. */
export function upload(url, form, { token, onProgress, signal }) {
  return new Promise((resolve, reject) => {
    const sending = new XMLHttpRequest();
    sending.open("POST", url);
    if (token) sending.setRequestHeader("Authorization", `Bearer ${token}`);
    sending.upload.onprogress = ({ loaded, total }) => onProgress(loaded / total);
    sending.onerror = () => reject(new Unreachable("the connection was lost"));
    sending.onabort = () => reject(signal.reason);
    sending.onload = () => {
      const { status, statusText } = sending;
      const answer = parsed(sending.responseText);
      if (status < 300) resolve(answer);
      else reject(refusal(status, statusText, answer, sending.getResponseHeader("Retry-After")));
    };
    signal.addEventListener("abort", () => sending.abort());
    sending.send(form);
  });
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return {};
  }
}

function refusal(status, statusText, problem, retryAfter) {
  return new Refusal(status, { ...problem, detail: problem.detail ?? `${status} ${statusText}` }, Number(retryAfter) || null);
}
