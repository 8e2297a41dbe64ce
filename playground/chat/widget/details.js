// What is stored beside the messages: numbers of the session, its metadata, the agent's state.

import { chart } from "./charts.js";
import { copyButton, el } from "./dom.js";
import { duration } from "./message.js";

const number = new Intl.NumberFormat();
const compact = new Intl.NumberFormat(undefined, { notation: "compact" });

const TOKENS = {
  testid: "chart-tokens",
  title: "Tokens per turn",
  parts: [
    { kind: "input", field: "input_tokens", label: "read" },
    { kind: "output", field: "output_tokens", label: "written" },
  ],
  format: (value) => compact.format(value),
};
const LATENCY = {
  testid: "chart-latency",
  title: "Latency per turn",
  parts: [{ kind: "latency", field: "latency_ms", label: "latency" }],
  format: duration,
};

export class Details {
  #backend;
  #on;
  #session = null;
  #id = el("code", { class: "session-id", "data-testid": "session-id" });
  #summary = el("dl", { class: "summary", "data-testid": "summary" });
  #charts = el("div", { class: "charts" });
  #empty = el("p", { class: "quiet" }, "Nothing is stored yet. Say something, and look again.");
  #stored;
  #state;
  #metadata;
  #stateStored = {};
  #metadataStored = {};

  /**
   * @param {Backend} backend
   * @param {object} on
   * @param {() => void} on.changed something was saved
   * @param {(error: Error) => void} on.error
   */
  constructor(backend, on) {
    this.#backend = backend;
    this.#on = on;
    this.#state = new Editor("state", "Agent state", "What the agent’s tools remember.", async (value) => {
      const session = this.#session;
      const stored = await backend.saveState(session, difference(this.#stateStored, value));
      if (session === this.#session) this.#stateStored = stored;
      on.changed();
      return stored;
    });
    this.#metadata = new Editor(
      "metadata",
      "Session metadata",
      "For your application. A title in it renames the conversation.",
      async (value) => {
        const session = this.#session;
        const stored = await backend.saveMetadata(session, difference(this.#metadataStored, value));
        if (session === this.#session) this.#metadataStored = stored;
        on.changed();
        return stored;
      },
    );
    this.#stored = el(
      "div",
      { class: "stored", hidden: true },
      this.#summary,
      this.#charts,
      this.#state.element,
      this.#metadata.element,
    );
    const copy = copyButton("Copy session id", "copy-session-id", () => this.#id.textContent);
    this.element = el(
      "div",
      { class: "sheet-body" },
      el("div", { class: "session" }, el("h3", {}, "Session"), this.#id, copy),
      this.#empty,
      this.#stored,
    );
  }

  /** Whose details these are. */
  open(session) {
    if (session !== this.#session) {
      this.#state.forget();
      this.#metadata.forget();
      this.#showStored(false);
    }
    this.#session = session;
    this.#id.textContent = session;
  }

  /** Read and show what is stored; what is being edited is left as it is. */
  async load() {
    const session = this.#session;
    let details = null;
    try {
      details = await this.#backend.details(session);
    } catch (error) {
      if (error.status !== 404) this.#on.error(error);
    }
    if (session !== this.#session || details === null) return;
    const { summary, turns, state, metadata } = details;
    this.#summary.replaceChildren(...facts(summary));
    this.#charts.replaceChildren(chart(TOKENS, turns), chart(LATENCY, turns));
    if (this.#state.show(state)) this.#stateStored = state;
    if (this.#metadata.show(metadata)) this.#metadataStored = metadata;
    this.#showStored(true);
  }

  #showStored(isStored) {
    this.#stored.hidden = !isStored;
    this.#empty.hidden = isStored;
  }
}

function facts(summary) {
  const { up, down } = summary.feedback;
  return [
    ["Turns", number.format(summary.turns)],
    ["Messages", number.format(summary.messages)],
    ["Tokens read", number.format(summary.input_tokens)],
    ["Tokens written", number.format(summary.output_tokens)],
    ["Latency, median", duration(summary.latency_ms_p50 ?? 0)],
    ["Latency, 95 %", duration(summary.latency_ms_p95 ?? 0)],
    ["Tool calls", number.format(summary.tool_calls)],
    ["Feedback", `${up} good, ${down} bad`],
  ].map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)));
}

/** A JSON object that can be edited. */
class Editor {
  #text;
  #said;
  #button;
  #shown = "";
  #forgotten = 0; // how often
  #save;

  constructor(name, title, hint, save) {
    this.#save = save;
    const ids = { hint: `chat-${name}-hint`, said: `chat-${name}-said`, text: `chat-${name}` };
    this.#text = el("textarea", {
      class: "field json",
      id: ids.text,
      rows: 5,
      spellcheck: "false",
      autocapitalize: "off",
      autocomplete: "off",
      "aria-describedby": `${ids.hint} ${ids.said}`,
      "data-testid": `${name}-editor`,
      on: { input: () => this.#edited() },
    });
    this.#said = el("p", { class: "said", id: ids.said, role: "status", "data-testid": `${name}-said` });
    this.#button = el(
      "button",
      { type: "submit", class: "button", disabled: true, "data-testid": `${name}-save` },
      "Save",
    );
    this.element = el(
      "form",
      {
        class: "editor",
        novalidate: true,
        on: {
          submit: (event) => {
            event.preventDefault();
            this.#submit();
          },
        },
      },
      el("label", { for: ids.text }, title),
      el("p", { class: "quiet", id: ids.hint }, hint),
      this.#text,
      el("div", { class: "editor-foot" }, this.#said, this.#button),
    );
  }

  /** Show a value, unless somebody is editing another. Returns whether it is shown. */
  show(value) {
    if (this.#text.value !== this.#shown) return false;
    this.#shown = this.#text.value = JSON.stringify(value, null, 2);
    this.#fit();
    return true;
  }

  forget() {
    this.#forgotten += 1;
    this.#shown = this.#text.value = "";
    this.#say("", false);
    this.#button.disabled = true;
  }

  #edited() {
    const { problem } = parsed(this.#text.value);
    this.#say(problem, problem !== "");
    this.#button.disabled = problem !== "" || this.#text.value === this.#shown;
    this.#fit();
  }

  async #submit() {
    const { value, problem } = parsed(this.#text.value);
    this.#say(problem, problem !== "");
    if (problem) return;
    this.#button.disabled = true;
    const forgotten = this.#forgotten;
    try {
      this.#shown = this.#text.value; // What comes back may be shown in its place.
      const stored = await this.#save(value);
      if (forgotten !== this.#forgotten) return; // Another conversation's is shown by now.
      this.show(stored);
      this.#say("Saved.", false);
    } catch (error) {
      if (forgotten !== this.#forgotten) return;
      this.#shown = "";
      this.#button.disabled = false;
      this.#say(error.message, true);
    }
  }

  #say(text, isProblem) {
    this.#said.textContent = text;
    this.#said.classList.toggle("problem", isProblem);
    this.#text.setAttribute("aria-invalid", String(isProblem));
  }

  #fit() {
    this.#text.rows = Math.min(Math.max(this.#text.value.split("\n").length, 3), 14);
  }
}

/** {value} of a text that is a JSON object, or a `problem` in words. */
function parsed(text) {
  try {
    const value = JSON.parse(text);
    if (value !== null && typeof value === "object" && !Array.isArray(value)) return { value, problem: "" };
    return { problem: "It must be an object: { … }." };
  } catch (error) {
    return { problem: `Not valid JSON: ${error.message}.` };
  }
}

/** What has to be set and deleted so that `before` becomes `after`. */
function difference(before, after) {
  const isSame = (key, value) => Object.hasOwn(before, key) && JSON.stringify(before[key]) === JSON.stringify(value);
  const changed = Object.entries(after).filter(([key, value]) => !isSame(key, value));
  return { set: Object.fromEntries(changed), delete: Object.keys(before).filter((key) => !Object.hasOwn(after, key)) };
}
