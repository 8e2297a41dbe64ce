// The list of past conversations: found, opened, deleted.

import { el, icon, iconButton } from "./dom.js";

const SEARCH_PAUSE_MS = 200;
const UNITS = [
  ["year", 31_536_000],
  ["month", 2_592_000],
  ["week", 604_800],
  ["day", 86_400],
  ["hour", 3600],
  ["minute", 60],
];
const relative = new Intl.RelativeTimeFormat(undefined, { numeric: "auto" });

export class Conversations {
  #backend;
  #on;
  #current = null;
  #asked = null;
  #timer = 0;
  #cursor = null;
  #search;
  #list = el("ul", { class: "conversations", "data-testid": "conversations", "aria-label": "Past conversations" });
  #empty = el("p", { class: "quiet", role: "status" });
  #more;

  /**
   * @param {Backend} backend
   * @param {object} on
   * @param {(id: string) => void} on.open
   * @param {(id: string) => void} on.deleted
   * @param {(error: Error) => void} on.error
   */
  constructor(backend, on) {
    this.#backend = backend;
    this.#on = on;
    this.#search = el("input", {
      type: "search",
      class: "field",
      placeholder: "Search titles and messages",
      "aria-label": "Search conversations",
      "data-testid": "conversation-search",
      on: {
        input: () => {
          clearTimeout(this.#timer);
          this.#timer = setTimeout(() => this.load(), SEARCH_PAUSE_MS);
        },
        keydown: (event) => {
          // Escape empties the box; in an empty one it closes the list, as everywhere.
          if (event.key === "Escape" && this.#search.value) event.stopPropagation();
        },
      },
    });
    this.#more = el(
      "button",
      { type: "button", class: "older", hidden: true, on: { click: () => this.#append() } },
      "More",
    );
    this.element = el("div", { class: "sheet-body" }, this.#search, this.#empty, this.#list, this.#more);
  }

  set current(id) {
    this.#current = id;
    for (const item of this.#list.children) this.#mark(item);
  }

  focus() {
    this.#search.focus({ preventScroll: true });
  }

  /** Whether a conversation is there, as far as the newest ones tell; asking for one that is not would be an error. */
  async has(id) {
    const { conversations, cursor } = await this.#backend.conversations();
    return cursor !== null || conversations.some((one) => one.id === id);
  }

  /** Read the list anew. Returns the conversations, or null if they could not be read. */
  async load() {
    this.#asked?.abort();
    const asked = new AbortController();
    this.#asked = asked;
    const search = this.#search.value.trim();
    try {
      const { conversations, cursor } = await this.#backend.conversations({ search, signal: asked.signal });
      if (asked.signal.aborted) return null;
      this.#cursor = cursor;
      this.#show(conversations, search);
      return { conversations, cursor };
    } catch (error) {
      if (!asked.signal.aborted) this.#on.error(error);
      return null;
    }
  }

  #show(conversations, search) {
    if (this.#list.querySelector(".confirm")) return; // Nothing moves under a hand that is about to delete.
    const focused = this.#list.contains(document.activeElement)
      ? document.activeElement.closest("li").dataset.id
      : null;
    this.#list.replaceChildren(...conversations.map((one) => this.#item(one, search)));
    this.#showRest(search);
    for (const item of this.#list.children) if (item.dataset.id === focused) item.querySelector("button").focus();
  }

  async #append() {
    const asked = this.#asked;
    this.#more.disabled = true; // A double click would bring the same page twice.
    try {
      const { conversations, cursor } = await this.#backend.conversations({ cursor: this.#cursor });
      if (asked !== this.#asked) return; // The list was read anew meanwhile, from its beginning.
      this.#cursor = cursor;
      this.#list.append(...conversations.map((one) => this.#item(one, "")));
      this.#showRest("");
    } catch (error) {
      this.#on.error(error);
    } finally {
      this.#more.disabled = false;
    }
  }

  #showRest(search) {
    this.#more.hidden = this.#cursor === null;
    this.#empty.hidden = this.#list.childElementCount > 0;
    this.#empty.textContent = search
      ? `Nothing has the words “${search}”.`
      : "No conversations yet. What you write is kept here.";
  }

  #item({ id, title, updated_at: updatedAt, messages, excerpt }, search) {
    const date = new Date(updatedAt);
    const open = el(
      "button",
      {
        type: "button",
        class: "conversation-open",
        "data-testid": "conversation-open",
        on: { click: () => this.#on.open(id) },
      },
      el("span", { class: "conversation-title" }, title || "Untitled"),
      excerpt ? el("span", { class: "conversation-excerpt" }, ...marked(excerpt, search)) : null,
      el(
        "span",
        { class: "conversation-facts" },
        el("time", { datetime: updatedAt, title: date.toLocaleString() }, ago(date)),
        ` · ${messages} ${messages === 1 ? "message" : "messages"}`,
      ),
    );
    const item = el("li", { class: "conversation", "data-testid": "conversation", "data-id": id }, open);
    const trash = iconButton("trash", `Delete “${title || "Untitled"}”`, "conversation-delete", {
      on: { click: () => confirm() },
    });
    item.append(trash);
    const confirm = () => {
      const keep = () => {
        question.remove();
        open.hidden = trash.hidden = false;
        trash.focus();
      };
      const yes = el(
        "button",
        {
          type: "button",
          class: "button danger",
          "data-testid": "conversation-delete-confirm",
          on: { click: () => this.#delete(item, keep) },
        },
        icon("trash"),
        "Delete",
      );
      const no = el("button", { type: "button", class: "button", on: { click: keep } }, "Keep");
      const question = el(
        "div",
        {
          class: "confirm",
          role: "group",
          "aria-label": `Delete “${title || "Untitled"}” for good?`,
          on: {
            keydown: (event) => {
              if (event.key !== "Escape") return;
              event.stopPropagation();
              keep();
            },
          },
        },
        el("span", {}, "Delete for good?"),
        yes,
        no,
      );
      open.hidden = trash.hidden = true;
      item.append(question);
      yes.focus();
    };
    this.#mark(item);
    return item;
  }

  #mark(item) {
    const isCurrent = item.dataset.id === this.#current;
    item.querySelector(".conversation-open").setAttribute("aria-current", String(isCurrent));
  }

  async #delete(item, keep) {
    const { id } = item.dataset;
    try {
      await this.#backend.deleteConversation(id);
    } catch (error) {
      if (error.status !== 404) {
        keep();
        this.#on.error(error);
        return;
      }
    }
    const next = item.nextElementSibling ?? item.previousElementSibling;
    item.remove();
    if (next) next.querySelector(".conversation-open").focus();
    else this.focus();
    this.#showRest(this.#search.value.trim());
    this.#on.deleted(id);
  }
}

/** A text whose searched words are marked. */
function marked(text, search) {
  const words = search
    .split(/\s+/)
    .filter(Boolean)
    .map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  if (!words.length) return [text];
  return text
    .split(new RegExp(`(${words.join("|")})`, "giu"))
    .map((part, at) => (at % 2 ? el("mark", {}, part) : part));
}

function ago(date) {
  const seconds = (date - Date.now()) / 1000;
  const [unit, length] = UNITS.find(([, its]) => Math.abs(seconds) >= its) ?? ["second", 1];
  return unit === "second" ? "just now" : relative.format(Math.round(seconds / length), unit);
}
