// The log of messages: what is in it, and where the reader is.

import { el, iconButton } from "./dom.js";
import { Answer, Question } from "./message.js";

const AT_THE_END = 48; // pixels

export class Log {
  #list = el("div", { class: "messages-list" });
  #older;
  #jump;
  #following = true;
  #top = 0;
  #head = []; // stored messages that belong to a turn whose beginning is not loaded yet
  #onRate;

  /**
   * @param {object} on
   * @param {() => void} on.older earlier messages are wanted
   * @param {(id: number, rating: string) => Promise<void>} on.rate
   * @param {Node} welcome is shown while there is no message
   */
  constructor({ older, rate }, welcome) {
    this.#onRate = rate;
    this.#older = el(
      "button",
      { type: "button", class: "older", "data-testid": "older", hidden: true, on: { click: older } },
      "Earlier messages",
    );
    this.#jump = iconButton("latest", "Jump to the latest message", "jump-to-latest", {
      class: "jump",
      hidden: true,
      on: { click: () => this.follow() },
    });
    // Streaming is not read out piece by piece: the announcer says each answer once, when it is complete.
    this.log = el(
      "div",
      {
        class: "messages",
        role: "log",
        "aria-live": "off",
        "aria-label": "Messages",
        tabindex: 0,
        "data-testid": "messages",
      },
      this.#older,
      welcome,
      this.#list,
    );
    this.element = el("div", { class: "log" }, this.log, this.#jump);
    this.log.addEventListener("scroll", () => this.#scrolled(older), { passive: true });
    new ResizeObserver(() => this.grew()).observe(this.#list);
    new ResizeObserver(() => this.grew()).observe(this.log);
  }

  /** The id before which earlier messages are; null if there are none. */
  before = null;

  /** Show these stored messages and no others. */
  show(messages, more) {
    this.#inPlace(() => this.#list.replaceChildren(...this.#entries(messages, more)));
  }

  /** Show these stored messages above the others. */
  prepend(messages, more) {
    this.#inPlace(() => this.#list.prepend(...this.#entries([...messages, ...this.#head], more)));
  }

  /** Wherever the reader is, seen from the end, they stay there. */
  #inPlace(change) {
    const place = this.log.scrollHeight - this.log.scrollTop;
    change();
    this.log.scrollTop = this.log.scrollHeight - place;
    this.grew();
  }

  /** A turn is never torn: what belongs to one that begins on an earlier page waits for that page. */
  #entries(messages, more) {
    const first = more ? messages.findIndex(isQuestion) : 0;
    this.#head = first < 0 ? messages : messages.slice(0, first);
    this.before = more ? (messages[0]?.message_id ?? null) : null;
    this.#older.hidden = this.before === null;
    return first < 0 ? [] : [...turns(messages.slice(first), this.#onRate)];
  }

  /** @param {"idle"|"answering"|"waiting"} phase questions can be asked again in the first only */
  set phase(phase) {
    this.log.setAttribute("aria-busy", String(phase !== "idle"));
    for (const retry of this.#list.querySelectorAll("[data-testid=retry]")) retry.disabled = phase !== "idle";
  }

  /** Only the end of a turn is loaded: nothing can be shown yet. */
  get isTorn() {
    return this.#head.length > 0 && this.#list.childElementCount === 0;
  }

  addQuestion(text) {
    const question = new Question(text);
    this.append(question.element);
    return question;
  }

  addAnswer() {
    const answer = new Answer(() => this.grew());
    answer.wait();
    this.append(answer.element);
    return answer;
  }

  removeAfter({ element }) {
    while (element.nextSibling) element.nextSibling.remove();
  }

  append(element) {
    this.#list.append(element);
    this.follow();
  }

  /** The last question, if it has no answer behind it: nothing, or only calls of tools. */
  unanswered() {
    const last = this.#list.lastElementChild;
    return questions.get(last) ?? (unfinished.has(last) ? (questions.get(last.previousElementSibling) ?? null) : null);
  }

  follow() {
    this.#following = true;
    this.grew();
  }

  /** The log has become longer: a reader at its end stays there, one who reads further up is left alone. */
  grew() {
    if (this.#following) this.log.scrollTop = this.log.scrollHeight;
    this.#top = this.log.scrollTop;
    this.#jump.hidden = this.#following;
  }

  #scrolled(older) {
    const { scrollTop, scrollHeight, clientHeight } = this.log;
    // Only somebody's hand moves it up; that it is not at the end may also be because the log has grown.
    if (scrollHeight - clientHeight - scrollTop <= AT_THE_END) this.#following = true;
    else if (scrollTop < this.#top) this.#following = false;
    if (scrollTop < this.#top && scrollTop < 120 && this.before !== null) older();
    this.#top = scrollTop;
    this.#jump.hidden = this.#following;
  }
}

const questions = new WeakMap(); // by element
const unfinished = new WeakSet(); // elements of answers that are not the end of their turn
const isQuestion = ({ role, text, tool_results }) => role === "user" && (text !== "" || tool_results.length === 0);

/** Stored messages to what people see: all that an agent and its tools said until the next question is one answer. */
function* turns(messages, onRate) {
  let answered = [];
  for (const message of messages) {
    if (!isQuestion(message)) {
      answered.push(message);
      continue;
    }
    if (answered.length) yield storedAnswer(answered, onRate);
    answered = [];
    const question = new Question(message.text, { id: message.message_id, createdAt: new Date(message.created_at) });
    questions.set(question.element, question);
    yield question.element;
  }
  if (answered.length) yield storedAnswer(answered, onRate);
}

function storedAnswer(messages, onRate) {
  const answer = new Answer();
  const measured = messages.map(({ metrics }) => metrics).filter(Boolean);
  const total = (name) => measured.reduce((sum, metrics) => sum + metrics[name], 0);
  for (const { text, tool_uses, tool_results } of messages) {
    if (text) answer.addText(text);
    answer.endText();
    for (const use of tool_uses) answer.addToolUse(use);
    for (const result of tool_results) answer.addToolResult(result);
  }
  const last = messages.findLast(({ role }) => role === "assistant") ?? messages.at(-1);
  answer.complete({
    id: last.message_id,
    feedback: last.feedback,
    createdAt: new Date(last.created_at),
    metrics: measured.length
      ? { input_tokens: total("input_tokens"), output_tokens: total("output_tokens"), latency_ms: total("latency_ms") }
      : null,
    onRate,
  });
  if (messages.at(-1).role === "user" || messages.at(-1).tool_uses.length) unfinished.add(answer.element);
  return answer.element;
}
