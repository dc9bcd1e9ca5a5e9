// HTTP requests to the server: refusals with their reasons, and requests without an answer.

const TIMEOUT_MS = 20_000;

/** The server refused; fields as in its problem document. `retryAfterS` is set if trying again may work. */
export class Refusal extends Error {
  constructor(status, code, detail, retryAfterS) {
    super(detail);
    this.status = status;
    this.code = code;
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
  const detail = problem.detail ?? `${response.status} ${response.statusText}`;
  const retryAfterS = Number(response.headers.get("Retry-After")) || null;
  throw new Refusal(response.status, problem.code ?? "http", detail, retryAfterS);
}
