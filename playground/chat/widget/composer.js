// Where one writes. What is not sent yet survives a reload.

import { el, iconButton } from "./dom.js";
import { recall, remember } from "./storage.js";

const LONGEST = 8000; // characters, as the backend has it

export class Composer {
  #input;
  #send;
  #stop;
  #left;
  #drafts = recall("drafts") ?? {}; // by conversation
  #conversation = null;
  #onSend;

  /**
   * @param {object} on
   * @param {(text: string) => boolean} on.send returns whether it takes the text
   * @param {() => void} on.stop
   */
  constructor({ send, stop }) {
    this.#onSend = send;
    this.#input = el("textarea", {
      class: "input",
      rows: 1,
      maxlength: LONGEST,
      placeholder: "Write a message…",
      "aria-label": "Message",
      "aria-describedby": "chat-keys",
      enterkeyhint: "send",
      autocomplete: "off",
      "data-testid": "input",
      on: { input: () => this.#changed(), keydown: (event) => this.#pressed(event) },
    });
    this.#send = iconButton("send", "Send", "send", { type: "submit", class: "primary", disabled: true });
    this.#stop = iconButton("stop", "Stop the answer", "stop", { class: "primary", hidden: true, on: { click: stop } });
    this.#left = el("span", { class: "left", hidden: true });
    this.element = el(
      "form",
      {
        class: "composer",
        on: {
          submit: (event) => {
            event.preventDefault();
            this.#submit();
          },
        },
      },
      el("div", { class: "composer-box" }, this.#input, this.#send, this.#stop),
      el(
        "p",
        { class: "keys", id: "chat-keys" },
        el(
          "span",
          {},
          el("kbd", {}, "Enter"),
          " sends, ",
          el("kbd", {}, "Shift"),
          " ",
          el("kbd", {}, "Enter"),
          " begins a line",
        ),
        this.#left,
      ),
    );
  }

  /** The draft of another conversation comes into the box. */
  open(conversation) {
    this.#conversation = conversation;
    this.#input.value = this.#drafts[conversation] ?? "";
    this.#changed();
  }

  /** Put a text that was not taken back, unless something else has been written meanwhile. */
  restore(text) {
    if (this.#input.value === "") this.#input.value = text;
    this.#changed();
  }

  /** @param {"idle"|"answering"|"waiting"} phase sending is possible in the first only; writing always */
  set phase(phase) {
    const focused = document.activeElement === this.#stop || document.activeElement === this.#send;
    this.#phase = phase;
    this.#send.hidden = phase === "answering";
    this.#stop.hidden = phase !== "answering";
    this.#changed();
    if (focused) this.focus(); // The button under the focus may just have gone.
  }
  #phase = "idle";

  focus() {
    this.#input.focus({ preventScroll: true });
  }

  #changed() {
    const text = this.#input.value;
    this.#send.disabled = this.#phase !== "idle" || text.trim() === "";
    this.#left.hidden = text.length < LONGEST * 0.9;
    this.#left.textContent = `${LONGEST - text.length} characters left`;
    if (this.#conversation === null) return;
    if (text) this.#drafts[this.#conversation] = text;
    else delete this.#drafts[this.#conversation];
    remember("drafts", Object.keys(this.#drafts).length ? this.#drafts : null);
  }

  #pressed(event) {
    // While an input method composes (229 in Safari), Enter chooses a word.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    this.#submit();
  }

  #submit() {
    const text = this.#input.value.trim();
    if (this.#phase !== "idle" || text === "" || !this.#onSend(text)) return;
    this.#input.value = "";
    this.#changed();
  }
}
