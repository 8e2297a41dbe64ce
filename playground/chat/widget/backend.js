// What the backend is asked, and how it fails.

import { serverSentEvents } from "./sse.js";

const QUIET_MS = 45_000; // The backend pings every 15 seconds.

/** The backend refused, or (`status` 0) nobody answered. `message` is for people. */
export class RequestFailed extends Error {
  constructor(status, message, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter; // seconds
  }
}

export class Backend {
  #first = null; // what is asked before anything was answered
  #isKnown = false;

  /** @param {string} address such as http://localhost:8880 */
  constructor(address) {
    this.address = address;
  }

  /** The newest conversations, or with `search` those that have its words. */
  conversations({ search = "", cursor = null, signal } = {}) {
    return this.#json("/conversations", { query: { search, cursor }, signal });
  }

  /** The newest messages, or those before one. */
  conversation(session, { before = null } = {}) {
    return this.#json("/conversation", { session, query: { before } });
  }

  async deleteConversation(session) {
    await this.#send("/conversation", { session, method: "DELETE" });
  }

  details(session) {
    return this.#json("/conversation/details", { session });
  }

  saveState(session, changes) {
    return this.#json("/conversation/state", { session, method: "PUT", body: changes });
  }

  saveMetadata(session, changes) {
    return this.#json("/conversation/metadata", { session, method: "PUT", body: changes });
  }

  async rate(session, messageId, rating) {
    await this.#send("/conversation/feedback", { session, method: "POST", body: { message_id: messageId, rating } });
  }

  async isThere() {
    try {
      await fetch(`${this.address}/health`, { cache: "no-store", signal: AbortSignal.timeout(5000) });
      return true;
    } catch {
      return false;
    }
  }

  /**
   * Ask the agent.
   *
   * @yields {{event: "text"|"tool_use"|"tool_result"|"done"}} each with the fields the backend gave it
   * @throws {RequestFailed} also when the stream ends without its `done`
   */
  async *chat(session, prompt, { retry = false, signal } = {}) {
    const response = await this.#send("/chat", { session, method: "POST", body: { prompt, retry }, signal });
    try {
      for await (const { event, data } of serverSentEvents(response.body, QUIET_MS)) {
        const fields = JSON.parse(data);
        if (event === "failed") throw new RequestFailed(fields.status, explain(fields.status, fields.detail));
        yield { event, ...fields };
        if (event === "done") return;
      }
    } catch (error) {
      if (error instanceof RequestFailed || signal?.aborted) throw error;
      throw new RequestFailed(0, "The connection broke while the answer was on its way.");
    }
    throw new RequestFailed(0, "The answer ended before it was complete.");
  }

  /** The first answer brings the cookie. Until then one thing is asked at a time: two would come from two people. */
  async #fetch(url, request) {
    while (this.#first) await this.#first.catch(() => {});
    if (this.#isKnown) return fetch(url, request);
    this.#first = fetch(url, request);
    try {
      const response = await this.#first;
      this.#isKnown = true;
      return response;
    } finally {
      this.#first = null;
    }
  }

  async #json(path, request) {
    const response = await this.#send(path, request);
    return response.json();
  }

  async #send(path, { session, method = "GET", body, query = {}, signal }) {
    const url = new URL(path, this.address);
    for (const [name, value] of Object.entries(query))
      if (value !== null && value !== "") url.searchParams.set(name, value);
    const headers = {};
    if (session) headers["X-Session-ID"] = session;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let response;
    try {
      // The cookie says whose conversations these are.
      response = await this.#fetch(url, {
        method,
        headers,
        body: JSON.stringify(body),
        credentials: "include",
        signal,
      });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new RequestFailed(0, `The backend at ${this.address} does not answer.`);
    }
    if (response.ok) return response;
    const { detail } = await response.json().catch(() => ({}));
    throw new RequestFailed(
      response.status,
      explain(response.status, detail),
      Number(response.headers.get("Retry-After")) || null,
    );
  }
}

const BUSY = "This conversation is busy: an answer is being written, perhaps in another tab.";
const MEANING = {
  403: "The backend does not accept requests from this page.",
  404: "This conversation is not there any more.",
  413: "That is too long for the backend.",
  503: "The database does not answer.",
};

/** What the backend says of a failure, if that is a sentence; FastAPI's own refusals are lists. */
function explain(status, detail) {
  if (status === 409) return BUSY;
  if (Array.isArray(detail))
    detail = detail
      .map((one) => one?.msg)
      .filter(Boolean)
      .join("; ");
  if (typeof detail === "string" && detail && detail.length <= 300 && !detail.includes("\n")) return detail;
  return MEANING[status] ?? `The backend answered with an error (${status}).`;
}
