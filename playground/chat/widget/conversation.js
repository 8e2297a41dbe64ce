// The conversation in front of the reader: what is asked, answered, stopped, asked again, and read anew.
//
// What is shown while an answer streams is provisional; what is stored is the truth. After everything that did not
// end as it should (stop, a failure, a lost connection, a reload in between) the stored messages are shown instead.

import { RequestFailed } from "./backend.js";
import { recallAll, rememberOne } from "./storage.js";

// A turn that was cut off is stored a moment later.
const SETTLING_PAUSES_MS = [150, 300, 600, 1200];

export class Conversation {
  id = null;
  #backend;
  #log;
  #on;
  #newest = -1; // the id of the newest message that is known
  #open = null; // the question that could be asked again
  #turns = new Map(); // by conversation: an answer goes on while one looks at another conversation
  #reading = 0;

  /**
   * @param {Backend} backend
   * @param {Log} log
   * @param {object} on
   * @param {(id: string) => Promise<boolean>} on.isKnown whether the backend has this conversation
   * @param {(phase: "idle"|"answering"|"waiting") => void} on.phase
   * @param {(title: ?string) => void} on.title
   * @param {() => void} on.stored something was stored
   * @param {(text: string) => void} on.answered
   * @param {(text: string) => void} on.refused the backend does not want this text
   * @param {(error: Error) => void} on.error
   */
  constructor(backend, log, on) {
    this.#backend = backend;
    this.#log = log;
    this.#on = on;
  }

  get phase() {
    if (this.#turns.has(this.id)) return "answering";
    return this.#reading ? "waiting" : "idle";
  }

  /** Is any of it stored? */
  get exists() {
    return this.#newest >= 0;
  }

  /** Show a conversation; one that is new has nothing to be read. */
  async open(id, { isNew = false } = {}) {
    this.id = id;
    this.#newest = -1;
    this.#log.show([], false);
    this.#log.follow();
    this.#on.title(null);
    this.#on.phase(this.phase);
    if (isNew && this.#unsent() === null) return;
    await this.refresh();
  }

  /** Show what is stored. */
  async refresh() {
    await this.#waiting(async () => {
      const unsent = this.#unsent();
      const pauses = unsent && !unsent.isOver && !this.#turns.has(this.id) ? SETTLING_PAUSES_MS : [];
      if (await this.#read(pauses.length === 0)) return;
      for (const pause of pauses) {
        await new Promise((wake) => setTimeout(wake, pause));
        if (await this.#read(pause === pauses.at(-1))) return;
      }
    });
  }

  /** Load the page before the oldest message. */
  async older() {
    if (this.#log.before === null || this.#reading) return;
    const id = this.id;
    await this.#waiting(async () => {
      const { messages, more } = await this.#backend.conversation(id, { before: this.#log.before });
      if (id === this.id) this.#log.prepend(messages, more);
    });
  }

  /** Ask; returns whether the text was taken. */
  send(text) {
    if (this.phase !== "idle") return false;
    this.#ask(text, this.#log.addQuestion(text), false);
    return true;
  }

  /** What has been streamed so far is stored as the answer. */
  stop() {
    this.#turns.get(this.id)?.abort.abort();
  }

  /** A conversation was deleted. */
  forget(id) {
    this.#turns.get(id)?.abort.abort();
    keepUnsent(id, null);
  }

  async rate(messageId, rating) {
    try {
      await this.#backend.rate(this.id, messageId, rating);
    } catch (error) {
      this.#on.error(error);
      throw error;
    }
    this.#on.stored();
  }

  async #ask(text, question, retry) {
    const id = this.id;
    const turn = { text, question, retry, answer: this.#log.addAnswer(), abort: new AbortController() };
    this.#turns.set(id, turn);
    question.after = this.#newest;
    keepUnsent(id, { text, after: question.after });
    this.#on.phase(this.phase);
    let done = null;
    let failure = null;
    try {
      for await (const event of this.#backend.chat(id, text, { retry, signal: turn.abort.signal })) {
        if (event.event === "text") turn.answer.addText(event.text);
        else if (event.event === "tool_use") turn.answer.addToolUse(event);
        else if (event.event === "tool_result") turn.answer.addToolResult(event);
        else if (event.event === "done") done = event;
      }
    } catch (error) {
      failure = error;
    }
    this.#turns.delete(id);
    if (id === this.id) {
      if (done) this.#answered(turn, done);
      else this.#notAnswered(turn, failure);
      this.#on.phase(this.phase);
    } else if (done) {
      forgetUnsent(id, text);
    }
    this.#on.stored();
  }

  #answered({ text, question, answer, retry }, { message_ids: ids, metrics }) {
    forgetUnsent(this.id, text);
    const missed = ids.user !== null && ids.user > this.#newest + 1; // Another tab has said something, too.
    if (ids.user !== null) question.id = ids.user;
    answer.complete({ id: ids.assistant, metrics, onRate: (messageId, rating) => this.rate(messageId, rating) });
    this.#newest = ids.assistant ?? this.#newest;
    this.#on.answered(answer.text);
    if (missed || retry) this.refresh();
  }

  #notAnswered({ text, question, answer, abort }, failure) {
    if (answer.isEmpty) answer.element.remove();
    else answer.complete({});
    if (abort.signal.aborted) {
      this.refresh();
      return;
    }
    if (!(failure instanceof RequestFailed)) throw failure;
    if (failure.status !== 0) keepUnsent(this.id, { text, after: question.after, isOver: true });
    if ([403, 404, 413, 422].includes(failure.status)) {
      forgetUnsent(this.id, text);
      question.element.remove();
      this.#on.refused(text);
    } else {
      this.#offerRetry(question, failure.status === 409 ? "Not sent yet." : "Not answered.");
    }
    this.#on.error(failure);
    if (failure.status >= 500) this.refresh();
  }

  #offerRetry(question, reason) {
    this.#open = question;
    question.offerRetry(reason, () => this.#askAgain(question));
  }

  /** Ask again, unless it has been answered by now: unseen by this page, or in another tab. */
  async #askAgain({ text, after }) {
    const { id } = this;
    keepUnsent(id, { text, after, isOver: true });
    let isRead = false;
    await this.#waiting(async () => {
      await this.#read(true);
      isRead = true;
    });
    const question = this.#open;
    if (!isRead || id !== this.id || this.phase !== "idle" || question?.text !== text) return;
    question.settle();
    this.#log.removeAfter(question); // what there was of an answer
    this.#ask(text, question, true);
  }

  /** Read and show the newest messages. Returns whether nothing is on its way any more. */
  async #read(isLast) {
    const id = this.id;
    const page = await this.#newestPage(id);
    if (id !== this.id) return true;
    this.#open = null;
    this.#newest = page.messages.at(-1)?.message_id ?? -1;
    this.#on.title(page.title);
    this.#log.show(page.messages, page.more);
    while (this.#log.isTorn) {
      const { messages, more } = await this.#backend.conversation(id, { before: this.#log.before });
      if (id !== this.id) return true;
      this.#log.prepend(messages, more);
    }
    return this.#showWhatIsUnderWay(page.messages, isLast);
  }

  async #newestPage(id) {
    const nothing = { messages: [], more: false, title: null };
    const { exists } = this;
    if (!exists && !(await this.#on.isKnown(id))) return nothing;
    try {
      return await this.#backend.conversation(id);
    } catch (error) {
      if (error.status !== 404 || exists) throw error;
      return nothing; // It is not among the newest, and not among the others either: nothing was said in it yet.
    }
  }

  #showWhatIsUnderWay(messages, isLast) {
    const turn = this.#turns.get(this.id);
    const unsent = this.#unsent();
    const arrived =
      unsent &&
      messages.some((one) => one.message_id > unsent.after && one.role === "user" && one.text === unsent.text);
    let question = this.#log.unanswered();
    if (unsent && !arrived) {
      question = this.#log.addQuestion(unsent.text);
      question.after = unsent.after;
    }
    if (turn && question) {
      this.#log.removeAfter(question); // What is stored of the answer is part of the one that streams.
      this.#log.append(turn.answer.element);
      turn.question = question;
    } else if (question === null) {
      keepUnsent(this.id, null);
    } else if (isLast) {
      this.#offerRetry(question, arrived || !unsent ? "There is no answer." : "Not sent.");
    }
    return Boolean(turn) || question === null;
  }

  /** What was sent last, if nobody knows yet what became of it: {text, after: the id of the message
   *  before it, isOver: whether the backend has said that no answer is on its way}. */
  #unsent() {
    return recallAll("unsent")[this.id] ?? null;
  }

  async #waiting(work) {
    this.#reading += 1;
    this.#on.phase(this.phase);
    try {
      await work();
    } catch (error) {
      this.#on.error(error);
    } finally {
      this.#reading -= 1;
      this.#on.phase(this.phase);
    }
  }
}

function keepUnsent(id, what) {
  rememberOne("unsent", id, what);
}

/** What another tab has sent meanwhile is its own affair. */
function forgetUnsent(id, text) {
  if (recallAll("unsent")[id]?.text === text) keepUnsent(id, null);
}
