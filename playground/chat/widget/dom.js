// Elements without innerHTML: what is a string here is text, and stays text.

const SVG = "http://www.w3.org/2000/svg";

/**
 * Make an element.
 *
 * @param {string} tag
 * @param {object} [attributes] `on: {click: f}` listens; `true` sets an attribute without a value, `false` and
 *   `null` leave it out.
 * @param {...(Node|string|null)} children
 */
export function el(tag, attributes = {}, ...children) {
  return furnish(document.createElement(tag), attributes, children);
}

/** Make an element of an SVG, likewise. */
export function svg(tag, attributes = {}, ...children) {
  return furnish(document.createElementNS(SVG, tag), attributes, children);
}

function furnish(node, { on = {}, ...attributes }, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  for (const [type, listener] of Object.entries(on)) node.addEventListener(type, listener);
  node.append(...children.filter((child) => child !== null));
  return node;
}

// Strokes on a grid of 24 by 24.
const ICONS = {
  chat: "M21 12a8 8 0 0 1-8 8H4l2.2-3.2A8 8 0 1 1 21 12Z M9 10.5h7 M9 14h4.5",
  close: "M6 6l12 12 M18 6L6 18",
  menu: "M4 7h16 M4 12h16 M4 17h10",
  plus: "M12 5v14 M5 12h14",
  details: "M4 20V11 M10 20V4 M16 20v-7 M22 20H2",
  theme: "M20 14.5A8.5 8.5 0 0 1 9.5 4 8.5 8.5 0 1 0 20 14.5Z",
  send: "M12 19V5 M5.5 11.5L12 5l6.5 6.5",
  stop: "M7 7h10v10H7Z",
  copy: "M9 9h11v11H9Z M5 15H4V4h11v1",
  done: "M5 12.5l4.5 4.5L19 7.5",
  up: "M7 11v9H3v-9h4Zm0 0 4.2-8A2.3 2.3 0 0 1 13.4 6L12.8 9.5h6.4a2 2 0 0 1 2 2.4l-1.3 6.5a2 2 0 0 1-2 1.6H7",
  down: "M7 13V4H3v9h4Zm0 0 4.2 8a2.3 2.3 0 0 0 2.2-3L12.8 14.5h6.4a2 2 0 0 0 2-2.4l-1.3-6.5a2 2 0 0 0-2-1.6H7",
  latest: "M12 5v14 M5.5 12.5L12 19l6.5-6.5",
  trash: "M4 7h16 M9 7V4h6v3 M6.5 7l1 13h9l1-13",
  tool: "M14.5 6.5a4.5 4.5 0 0 0-6 5.7L3.5 17.2l3.3 3.3 5-5a4.5 4.5 0 0 0 5.7-6l-2.9 2.9-2.6-.7-.7-2.6 3.2-2.6Z",
};

/** A drawing that says nothing to a screen reader: its button does. */
export function icon(name) {
  const path = svg("path", { d: ICONS[name] });
  return svg("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true" }, path);
}

/** A button that shows an icon; `label` is its name and what appears beside the pointer. */
export function iconButton(name, label, testid, attributes = {}) {
  const { class: extra = "", ...others } = attributes;
  return el(
    "button",
    {
      type: "button",
      class: `icon-button ${extra}`.trim(),
      "aria-label": label,
      title: label,
      "data-testid": testid,
      ...others,
    },
    icon(name),
  );
}

/** Put a text on the clipboard; the button shows for a moment that it is there. */
export function copyButton(label, testid, text) {
  const button = iconButton("copy", label, testid);
  button.addEventListener("click", async () => {
    let said = "Copied";
    try {
      await navigator.clipboard.writeText(text());
      button.replaceChildren(icon("done"));
    } catch {
      said = "The browser did not allow it";
    }
    name(said);
    setTimeout(() => {
      button.replaceChildren(icon("copy"));
      name(label);
    }, 1500);
  });
  const name = (said) => {
    button.setAttribute("aria-label", said);
    button.title = said;
  };
  return button;
}
