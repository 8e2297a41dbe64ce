// Text that arrives in lumps is shown evenly.

const DRAIN_MS = 90; // After so long two thirds of what waits are shown: never more than a moment behind.
const still = matchMedia("(prefers-reduced-motion: reduce)");

export class Typewriter {
  #show;
  #text = "";
  #shown = 0;
  #before = 0;
  #frame = 0;

  /** @param {(text: string) => void} show is given the text so far */
  constructor(show) {
    this.#show = show;
  }

  get text() {
    return this.#text;
  }

  push(piece) {
    this.#text += piece;
    if (still.matches || document.hidden)
      this.flush(); // A hidden page draws no frames.
    else if (!this.#frame) {
      this.#before = performance.now();
      this.#frame = requestAnimationFrame((now) => this.#step(now));
    }
  }

  /** Show everything now. */
  flush() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    if (this.#shown === this.#text.length) return;
    this.#shown = this.#text.length;
    this.#show(this.#text);
  }

  #step(now) {
    const waiting = this.#text.length - this.#shown;
    const share = 1 - Math.exp(-Math.max(now - this.#before, 1) / DRAIN_MS);
    this.#before = now;
    this.#shown += Math.max(1, Math.ceil(waiting * share));
    if (/[\uD800-\uDBFF]/.test(this.#text.charAt(this.#shown - 1))) this.#shown += 1; // Not half a character.
    this.#shown = Math.min(this.#shown, this.#text.length);
    this.#show(this.#text.slice(0, this.#shown));
    this.#frame = this.#shown < this.#text.length ? requestAnimationFrame((later) => this.#step(later)) : 0;
  }
}
