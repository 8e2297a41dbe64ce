// Is the backend there? Asked only after it was not.

const PAUSES_MS = [500, 1000, 2000];

export class Connection {
  #isThere;
  #onLost;
  #onBack;
  #lost = false;
  #timer = 0;

  /**
   * @param {() => Promise<boolean>} isThere
   * @param {object} on
   * @param {() => void} on.lost
   * @param {() => void} on.back
   */
  constructor(isThere, { lost, back }) {
    this.#isThere = isThere;
    this.#onLost = lost;
    this.#onBack = back;
    addEventListener("offline", () => this.lost());
    addEventListener("online", () => this.#lost && this.#ask(0));
  }

  /** Somebody got no answer. */
  lost() {
    if (this.#lost) return;
    this.#lost = true;
    this.#onLost();
    this.#ask(0);
  }

  #ask(attempt) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(
      async () => {
        // Without a network nothing is asked; the event `online` begins anew.
        if (!navigator.onLine) return;
        if (!(await this.#isThere())) {
          this.#ask(attempt + 1);
          return;
        }
        this.#lost = false;
        this.#onBack();
      },
      PAUSES_MS[Math.min(attempt, PAUSES_MS.length - 1)],
    );
  }
}
