// Markdown to elements. What a model or a tool says is never trusted: markup in it is shown as text, what `marked`
// makes of the rest passes DOMPurify with a list of what may stay, and only elements come out, no HTML.

import DOMPurify from "../vendor/dompurify/purify.es.mjs";
import { Marked } from "../vendor/marked/marked.esm.js";
import { copyButton, el } from "./dom.js";

const escaped = (text) => text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: ({ text, block }) => {
      if (/^<br\s*\/?>$/i.test(text.trim())) return "<br>";
      return block ? `<p>${escaped(text.trim()).replaceAll("\n", "<br>")}</p>` : escaped(text);
    },
    // Pictures from elsewhere would tell their server who reads; they become links.
    image: ({ href, text }) => `<a href="${escaped(href)}">${escaped(text || href)}</a>`,
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
});

const ALLOWED = {
  ALLOWED_TAGS:
    "a blockquote br code del em h1 h2 h3 h4 h5 h6 hr li ol p pre strong table tbody td th thead tr ul #text".split(
      " ",
    ),
  ALLOWED_ATTR: ["align", "class", "href", "start", "title"],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  ADD_URI_SAFE_ATTR: ["align", "start"], // Their values are no addresses.
  ALLOW_ARIA_ATTR: false,
  ALLOW_DATA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  const language = node.tagName === "CODE" && /^language-[\w+#.-]+$/.test(node.className);
  if (!language) node.removeAttribute("class");
  if (node.hasAttribute("href")) {
    node.setAttribute("rel", "noopener noreferrer");
    node.setAttribute("target", "_blank");
  }
});

/** An element that shows Markdown which may still grow: blocks that are complete are not made again. */
export class MarkdownView {
  #blocks = []; // {raw, links, node}
  #isPlain = false;

  constructor(element) {
    this.element = element;
  }

  show(source) {
    try {
      this.#show(source);
    } catch {
      // Thousands of quotations in each other, say, are too much for the stack: then it is shown as it came.
      this.#blocks = [];
      this.element.replaceChildren(el("pre", { tabindex: 0 }, source));
      this.#isPlain = true;
    }
  }

  #show(source) {
    const tokens = marked.lexer(source);
    if (this.#isPlain) this.element.replaceChildren();
    this.#isPlain = false;
    const links = Object.keys(tokens.links).length; // A definition that comes later changes the blocks before it.
    tokens.forEach((token, at) => {
      const block = this.#blocks[at];
      if (block?.raw === token.raw && block.links === links) return;
      const node = el("div", {}, decorated(DOMPurify.sanitize(marked.parser([token]), ALLOWED)));
      if (block) block.node.replaceWith(node);
      else this.element.append(node);
      this.#blocks[at] = { raw: token.raw, links, node };
    });
    for (const { node } of this.#blocks.splice(tokens.length)) node.remove();
  }
}

/** Code gets its language and a copy button; what is wider than the page scrolls by itself, with the keyboard too. */
function decorated(fragment) {
  for (const pre of fragment.querySelectorAll("pre")) {
    const code = pre.querySelector("code");
    const language = code?.className.replace("language-", "") || "text";
    const frame = el("div", { class: "code" });
    pre.replaceWith(frame);
    pre.tabIndex = 0;
    frame.append(
      el(
        "div",
        { class: "code-head" },
        el("span", {}, language),
        copyButton("Copy code", "copy-code", () => pre.textContent),
      ),
      pre,
    );
  }
  for (const table of fragment.querySelectorAll("table")) {
    const frame = el("div", { class: "table", tabindex: 0 });
    table.replaceWith(frame);
    frame.append(table);
  }
  return fragment;
}
