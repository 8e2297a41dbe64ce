// One line about what is wrong, above the place where one writes.

import { el, iconButton } from "./dom.js";

export class Notice {
  #text = el("span", {});
  #count = el("span", { "aria-hidden": "true" }); // A countdown is not read out every second.
  #timer = 0;

  constructor() {
    const close = iconButton("close", "Dismiss", "notice-close", { on: { click: () => this.clear() } });
    this.element = el(
      "div",
      { class: "notice", role: "status", "data-testid": "notice", hidden: true },
      el("p", {}, this.#text, this.#count),
      close,
    );
  }

  /**
   * @param {"busy"|"offline"|"error"} kind
   * @param {string} text
   * @param {?number} seconds are counted down behind the text
   */
  show(kind, text, seconds = null) {
    this.clear();
    this.element.dataset.kind = kind;
    this.element.setAttribute("role", kind === "error" ? "alert" : "status");
    this.element.hidden = false;
    this.#text.textContent = text;
    if (seconds !== null) this.#countDown(seconds);
  }

  /** @param {?string} kind only a notice of this kind, if given */
  clear(kind = null) {
    if (kind !== null && this.element.dataset.kind !== kind) return;
    clearInterval(this.#timer);
    this.element.hidden = true;
    this.element.removeAttribute("data-kind");
    this.#text.textContent = this.#count.textContent = "";
  }

  #countDown(seconds) {
    const end = Date.now() + seconds * 1000;
    const show = () => {
      const left = Math.ceil((end - Date.now()) / 1000);
      this.#count.textContent = left > 0 ? ` It may be free in ${left} s.` : " It may be free now.";
      if (left <= 0) clearInterval(this.#timer);
    };
    show();
    this.#timer = setInterval(show, 250);
  }
}
