// HTTP to the server: what it refuses and why, and what never reached it.

const TIMEOUT_MS = 20_000;

/** The server's refusal, as its problem document explains it; `retryAfterS` where trying again may work. */
export class Refusal extends Error {
  constructor(status, code, detail, retryAfterS) {
    super(detail);
    this.status = status;
    this.code = code;
    this.retryAfterS = retryAfterS;
  }
}

/** No answer: no server, no network, or a server that does not let this page's origin in, which browsers do not tell. */
export class Unreachable extends Error {}

/** The response to a request; `token` is a session's token or a key of the server. Refusal, Unreachable. */
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
