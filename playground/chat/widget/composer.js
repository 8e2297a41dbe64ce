// Where one writes. What is not sent yet survives a reload.

import { el, iconButton } from "./dom.js";
import { recallAll, rememberOne } from "./storage.js";

const LONGEST = 8000; // characters, as the backend has it
const DOUBLE_CLICK_MS = 500;

export class Composer {
  #input;
  #send;
  #stop;
  #left;
  #clicked = false; // sent by the button, not by a key
  #timer = 0;
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
            this.#submit(true);
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
    this.#input.value = recallAll("drafts")[conversation] ?? "";
    this.#changed();
  }

  /** Put a text that was not taken back, unless something else has been written meanwhile. */
  restore(text) {
    if (this.#input.value === "") this.#input.value = text;
    this.#changed();
  }

  /** @param {"idle"|"answering"|"waiting"} phase sending is possible in the first only; writing always */
  set phase(phase) {
    if (phase === this.#phase) return;
    this.#phase = phase;
    clearTimeout(this.#timer);
    if (phase !== "answering") this.#showStop(false);
    // The buttons stand in one place: the second click of a double click would stop what the first has sent.
    else if (this.#clicked) this.#timer = setTimeout(() => this.#showStop(true), DOUBLE_CLICK_MS);
    else this.#showStop(true);
    this.#changed();
  }
  #phase = "idle";

  #showStop(isShown) {
    const { activeElement } = document;
    this.#send.hidden = isShown;
    this.#stop.hidden = !isShown;
    if (activeElement === this.#stop || activeElement === this.#send) this.focus(); // It may just have gone.
  }

  focus() {
    this.#input.focus({ preventScroll: true });
  }

  #changed() {
    const text = this.#input.value;
    this.#send.disabled = this.#phase !== "idle" || text.trim() === "";
    this.#left.hidden = text.length < LONGEST * 0.9;
    this.#left.textContent = `${LONGEST - text.length} characters left`;
    if (this.#conversation !== null) rememberOne("drafts", this.#conversation, text || null);
  }

  #pressed(event) {
    // While an input method composes (229 in Safari), Enter chooses a word.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    this.#submit(false);
  }

  #submit(clicked) {
    this.#clicked = clicked;
    const text = this.#input.value.trim();
    if (this.#phase !== "idle" || text === "" || !this.#onSend(text)) return;
    this.#input.value = "";
    this.#changed();
  }
}
