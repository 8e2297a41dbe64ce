// The chat: a button in the corner of a page, and the panel that it opens. A page needs this module and chat.css.
//
// An element with `data-chat-prompt="…"` anywhere in the page asks that when it is clicked.

import { Backend } from "./widget/backend.js";
import { Composer } from "./widget/composer.js";
import { Connection } from "./widget/connection.js";
import { Conversation } from "./widget/conversation.js";
import { Conversations } from "./widget/conversations.js";
import { Details } from "./widget/details.js";
import { el, icon, iconButton } from "./widget/dom.js";
import { Log } from "./widget/log.js";
import { Notice } from "./widget/notice.js";
import { recall, remember } from "./widget/storage.js";
import { isDark, toggleTheme } from "./widget/theme.js";

const SUGGESTIONS = ["My name is Ada.", "Show me Markdown.", "Tell me a long story."];
const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;
const phone = matchMedia("(width < 40rem)"); // as in chat.css: the panel covers the page
const roomy = matchMedia("(width >= 64rem)"); // a sheet stands beside the messages instead of on them

class ChatWidget {
  #backend;
  #opened = null; // resolves when the conversation of this browser is known
  #sheet = null; // the one that is open: "conversations" or "details"

  constructor(backendAddress) {
    this.#backend = new Backend(backendAddress);
    const error = (failure) => this.#failed(failure);
    this.notice = new Notice();
    this.connection = new Connection(() => this.#backend.isThere(), {
      lost: () => this.#lost(),
      back: () => this.#back(),
    });
    this.composer = new Composer({
      send: (text) => this.#send(text),
      stop: () => this.conversation.stop(),
    });
    this.log = new Log(
      { older: () => this.conversation.older(), rate: (id, rating) => this.conversation.rate(id, rating) },
      this.#welcome(),
    );
    this.conversation = new Conversation(this.#backend, this.log, {
      isKnown: (id) => this.conversations.has(id),
      phase: (phase) => this.#showPhase(phase),
      title: (title) => {
        this.title.textContent = title || "New conversation";
      },
      stored: () => this.#refresh(),
      answered: (text) => this.#announce(text),
      refused: (text) => this.composer.restore(text),
      error,
    });
    this.conversations = new Conversations(this.#backend, {
      open: (id) => this.#choose(id),
      deleted: (id) => {
        this.conversation.forget(id);
        if (id === this.conversation.id) this.#begin();
      },
      error,
    });
    this.details = new Details(this.#backend, { changed: () => this.#refresh(), error });
    this.#build();
  }

  /** Open the panel. */
  open() {
    if (this.panel.open) return;
    if (phone.matches) this.panel.showModal();
    else this.panel.show();
    this.fab.hidden = true;
    this.fab.setAttribute("aria-expanded", "true");
    remember("open", true, { inTab: true });
    if (matchMedia("(pointer: fine)").matches) this.composer.focus(); // No keyboard over the messages on a phone.
    this.log.follow();
    this.#opened ??= this.#restore();
  }

  close() {
    if (!this.panel.open) return;
    this.panel.close();
    this.fab.hidden = false;
    this.fab.setAttribute("aria-expanded", "false");
    remember("open", null, { inTab: true });
    this.fab.focus();
  }

  #build() {
    this.fab = el(
      "button",
      {
        type: "button",
        class: "chat-fab",
        "aria-label": "Open the chat",
        "aria-haspopup": "dialog",
        "aria-expanded": "false",
        "aria-controls": "chat-panel",
        "data-testid": "fab",
        on: { click: () => this.open() },
      },
      icon("chat"),
    );
    this.title = el("h2", { class: "title", id: "chat-title" }, "New conversation");
    this.announcer = el("div", { class: "sr-only", role: "status" });
    this.toggles = {
      conversations: this.#toggle("conversations", "menu", "Past conversations", "conversations-toggle"),
      details: this.#toggle("details", "details", "Details of this conversation", "details-toggle"),
    };
    const theme = iconButton("theme", "Dark theme", "theme", {
      "aria-pressed": String(isDark()),
      on: {
        click: () => {
          toggleTheme();
          theme.setAttribute("aria-pressed", String(isDark()));
        },
      },
    });
    const header = el(
      "header",
      { class: "head" },
      this.toggles.conversations,
      this.title,
      iconButton("plus", "New conversation", "new-chat", { on: { click: () => this.#begin() } }),
      this.toggles.details,
      theme,
      iconButton("close", "Close the chat", "close", { on: { click: () => this.close() } }),
    );
    this.main = el("div", { class: "main" }, this.log.element, this.notice.element, this.composer.element);
    this.sheets = {
      conversations: this.#aside("conversations", "Conversations", this.conversations.element),
      details: this.#aside("details", "Details", this.details.element, "details"),
    };
    this.panel = el(
      "dialog",
      {
        class: "chat-panel",
        id: "chat-panel",
        "aria-labelledby": "chat-title",
        "data-testid": "panel",
        on: {
          keydown: (event) => event.key === "Escape" && this.#escape(event),
          cancel: (event) => event.preventDefault(), // Escape has been dealt with.
        },
      },
      header,
      this.main,
      ...Object.values(this.sheets),
      this.announcer,
    );
    document.body.append(this.fab, this.panel);

    // A panel that covers the page keeps the focus; one beside it does not.
    phone.addEventListener("change", () => {
      if (!this.panel.open) return;
      this.panel.close();
      if (phone.matches) this.panel.showModal();
      else this.panel.show();
    });
    roomy.addEventListener("change", () => this.#showSheet(this.#sheet));
    document.addEventListener("click", (event) => {
      const prompt = event.target.closest?.("[data-chat-prompt]")?.dataset.chatPrompt;
      if (prompt) this.#suggested(prompt);
    });
    if (recall("open", { inTab: true })) this.open(); // as it was before a reload
  }

  #welcome() {
    const prompts = SUGGESTIONS.map((prompt) =>
      el("button", { type: "button", class: "suggestion", "data-chat-prompt": prompt }, prompt),
    );
    return el("div", { class: "welcome" }, el("p", {}, "Every message is kept in MongoDB. Try:"), ...prompts);
  }

  #toggle(name, picture, label, testid) {
    return iconButton(picture, label, testid, {
      "aria-expanded": "false",
      "aria-controls": `chat-${name}-sheet`,
      on: { click: () => this.#showSheet(this.#sheet === name ? null : name) },
    });
  }

  #aside(name, title, body, testid = null) {
    const close = iconButton("close", `Close ${title.toLowerCase()}`, `${name}-close`, {
      on: { click: () => this.#showSheet(null) },
    });
    return el(
      "aside",
      { class: "sheet", id: `chat-${name}-sheet`, "aria-label": title, "data-testid": testid, hidden: true },
      el("div", { class: "sheet-head" }, el("h2", {}, title), close),
      body,
    );
  }

  /** The conversation that this browser had before; a new one, if it had none. */
  async #restore() {
    const kept = recall("session", { inTab: true }) ?? recall("session"); // another tab may be at another one
    const id = UUID.test(kept) ? kept : crypto.randomUUID();
    this.#adopt(id);
    await this.#show(id, false);
  }

  /** From now on this is the conversation. */
  #adopt(id) {
    this.conversation.id = id;
    remember("session", id);
    remember("session", id, { inTab: true });
    this.composer.open(id);
    this.details.open(id);
    this.conversations.current = id;
  }

  async #show(id, isNew) {
    this.notice.clear();
    await this.conversation.open(id, { isNew });
    this.#refreshDetails();
  }

  #choose(id) {
    this.#adopt(id);
    if (!roomy.matches) this.#showSheet(null);
    this.composer.focus();
    return this.#show(id, false);
  }

  #begin() {
    const id = crypto.randomUUID();
    this.#adopt(id);
    if (!roomy.matches) this.#showSheet(null);
    this.composer.focus();
    return this.#show(id, true);
  }

  #send(text) {
    return this.conversation.send(text);
  }

  async #suggested(prompt) {
    this.open();
    await this.#opened;
    if (!this.#send(prompt)) this.composer.restore(prompt);
  }

  #showPhase(phase) {
    this.composer.phase = phase;
    if (phase === "answering") {
      this.notice.clear("busy");
      this.notice.clear("error");
      if (document.activeElement === document.body) this.log.log.focus(); // “Try again” has gone.
    }
    this.panel.dataset.phase = phase;
    this.log.phase = phase;
  }

  #showSheet(name) {
    const before = this.#sheet;
    this.#sheet = name;
    for (const [its, sheet] of Object.entries(this.sheets)) {
      sheet.hidden = its !== name;
      this.toggles[its].setAttribute("aria-expanded", String(its === name));
    }
    this.panel.classList.toggle("with-sheet", name !== null);
    this.main.inert = name !== null && !roomy.matches; // covered
    if (name === before) return;
    if (name === "conversations") {
      this.conversations.load();
      this.conversations.focus();
    } else if (name === "details") {
      this.#refreshDetails();
    } else {
      this.toggles[before].focus();
    }
  }

  /** Something was stored: list, title and details may be others. */
  async #refresh() {
    this.#refreshDetails();
    const page = await this.conversations.load();
    const current = page?.conversations.find(({ id }) => id === this.conversation.id);
    if (current) this.title.textContent = current.title;
  }

  #refreshDetails() {
    if (this.#sheet === "details" && this.conversation.exists) this.details.load();
  }

  #escape(event) {
    event.preventDefault();
    if (this.#sheet && !roomy.matches) this.#showSheet(null);
    else if (this.conversation.phase === "answering") this.conversation.stop();
    else if (this.#sheet) this.#showSheet(null);
    else this.close();
  }

  /** A screen reader is told each answer once. */
  #announce(text) {
    this.announcer.textContent = `Assistant: ${text.slice(0, 1000)}`;
  }

  #failed(failure) {
    if (failure.status === 0) this.connection.lost();
    else if (failure.status === 409) this.notice.show("busy", failure.message, failure.retryAfter ?? 5);
    else this.notice.show("error", failure.message);
  }

  #lost() {
    this.notice.show(
      "offline",
      navigator.onLine
        ? `The backend at ${this.#backend.address} does not answer. This page goes on by itself when it does.`
        : "You are offline. This page goes on by itself when you are back.",
    );
  }

  async #back() {
    this.notice.clear("offline");
    if (this.conversation.phase === "idle") await this.conversation.refresh();
    await this.#refresh();
  }
}

const { backendPort } = await fetch("config.json").then((response) => response.json());
// The same host name as the page's, for cookies do not go from localhost to 127.0.0.1.
export const chat = new ChatWidget(`${location.protocol}//${location.hostname}:${backendPort}`);
document.documentElement.dataset.chat = "ready";
