// One message, as people see it: what somebody asked, or everything that belongs to an answer.

import { copyButton, el, icon, iconButton } from "./dom.js";
import { MarkdownView } from "./markdown.js";
import { Typewriter } from "./typewriter.js";

const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "short" });
const calendar = new Intl.DateTimeFormat(undefined, { dateStyle: "long", timeStyle: "medium" });
const number = new Intl.NumberFormat();

/** What somebody asked; shown as it was typed. */
export class Question {
  #id;
  #after = -1;

  constructor(text, { id = null, createdAt = new Date() } = {}) {
    this.text = text;
    this.#id = id;
    this.element = el(
      "article",
      {
        class: "message question",
        "aria-label": "You",
        "data-testid": "message",
        "data-role": "user",
        "data-message-id": id,
      },
      el("div", { class: "bubble", "data-testid": "message-text" }, text),
      time(createdAt),
    );
  }

  /** Its id once it is stored. */
  get id() {
    return this.#id;
  }

  set id(id) {
    this.#id = id;
    this.element.dataset.messageId = id;
  }

  /** The id of the message before it; while it is not stored, of the newest one that was known when it was asked. */
  get after() {
    return this.#id === null ? this.#after : this.#id - 1;
  }

  set after(id) {
    this.#after = id;
  }

  /** There is no answer: say so, and offer to ask again; the log says when that is possible. */
  offerRetry(reason, onRetry) {
    this.settle();
    const retry = el(
      "button",
      { type: "button", class: "link", disabled: true, "data-testid": "retry", on: { click: onRetry } },
      "Try again",
    );
    this.element.append(el("p", { class: "unanswered" }, `${reason} `, retry));
  }

  settle() {
    this.element.querySelector(".unanswered")?.remove();
  }
}

/** An answer: texts and tool calls in the order they came, and below them what can be done with it. */
export class Answer {
  #parts = el("div", { class: "parts", "data-testid": "message-text" });
  #typing = el("div", { class: "typing", "data-testid": "typing", "aria-hidden": "true" }, el("i"), el("i"), el("i"));
  #typewriters = [];
  #writing = null;
  #tools = new Map();
  #onGrowth;

  /** @param {() => void} onGrowth is called whenever it has become longer */
  constructor(onGrowth = () => {}) {
    this.#onGrowth = onGrowth;
    this.element = el(
      "article",
      { class: "message answer", "aria-label": "Assistant", "data-testid": "message", "data-role": "assistant" },
      this.#parts,
    );
  }

  get text() {
    return this.#typewriters.map((typewriter) => typewriter.text).join("\n\n");
  }

  get isEmpty() {
    return this.#parts.childElementCount === 0;
  }

  /** Something is to come. */
  wait() {
    this.element.classList.add("growing");
    this.element.append(this.#typing);
  }

  addText(piece) {
    this.#typing.remove();
    if (!this.#writing) {
      const view = new MarkdownView(el("div", { class: "prose" }));
      this.#parts.append(view.element);
      this.#writing = new Typewriter((text) => {
        view.show(text);
        this.#onGrowth();
      });
      this.#typewriters.push(this.#writing);
    }
    this.#writing.push(piece);
  }

  addToolUse({ id, name, input }) {
    this.endText();
    const state = el("span", { class: "tool-state" }, "running…");
    const body = el(
      "div",
      { class: "tool-body" },
      el("h4", {}, "Input"),
      el("pre", { tabindex: 0 }, JSON.stringify(input, null, 2)),
    );
    const call = el(
      "details",
      { class: "tool", "data-testid": "tool-call", "data-status": "running" },
      el("summary", {}, icon("tool"), el("span", { class: "tool-name" }, name), state),
      body,
    );
    this.#tools.set(id, { call, state, body });
    this.#parts.append(call);
    if (this.element.classList.contains("growing")) this.element.append(this.#typing);
    this.#onGrowth();
  }

  addToolResult({ id, status, text }) {
    const tool = this.#tools.get(id);
    if (!tool) return;
    tool.call.dataset.status = status;
    tool.state.textContent = status === "error" ? "failed" : "done";
    tool.body.append(el("h4", {}, "Result"), el("pre", { tabindex: 0 }, pretty(text)));
    this.#onGrowth();
  }

  /** What has come is shown at once. */
  endText() {
    this.#writing?.flush();
    this.#writing = null;
  }

  /**
   * Nothing more will come.
   *
   * @param {object} facts
   * @param {?number} facts.id without one it cannot be rated
   * @param {?{input_tokens: number, output_tokens: number, latency_ms: number}} facts.metrics
   * @param {?("up"|"down")} facts.feedback
   * @param {(id: number, rating: string) => Promise<void>} facts.onRate
   */
  complete({ id = null, metrics = null, feedback = null, createdAt = new Date(), onRate }) {
    this.endText();
    this.#typing.remove();
    this.element.classList.remove("growing");
    for (const { call, state } of this.#tools.values()) {
      if (call.dataset.status !== "running") continue;
      call.dataset.status = "unknown";
      state.textContent = "no result";
    }
    const foot = el(
      "footer",
      { class: "foot" },
      copyButton("Copy answer", "copy", () => this.text),
    );
    if (id !== null) {
      this.element.dataset.messageId = id;
      foot.append(...thumbs(feedback, (rating) => onRate(id, rating)));
    }
    foot.append(el("span", { class: "facts" }, time(createdAt), metrics ? ` · ${cost(metrics)}` : null));
    this.element.append(foot);
    this.#onGrowth();
  }
}

function thumbs(feedback, onRate) {
  const show = (rating) => {
    for (const [button, its] of [
      [up, "up"],
      [down, "down"],
    ])
      button.setAttribute("aria-pressed", String(its === rating));
  };
  const rate = async (rating) => {
    const before = feedback;
    feedback = rating;
    show(rating);
    try {
      await onRate(rating);
    } catch {
      feedback = before; // Whoever was asked has said why.
      show(before);
    }
  };
  const up = iconButton("up", "Good answer", "thumb-up", { on: { click: () => rate("up") } });
  const down = iconButton("down", "Bad answer", "thumb-down", { on: { click: () => rate("down") } });
  show(feedback);
  return [up, down];
}

function time(date) {
  return el("time", { datetime: date.toISOString(), title: calendar.format(date) }, clock.format(date));
}

function cost({ input_tokens: read, output_tokens: written, latency_ms: latency }) {
  return `${number.format(read)} → ${number.format(written)} tokens · ${duration(latency)}`;
}

/** Milliseconds for people. */
export function duration(milliseconds) {
  return milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
