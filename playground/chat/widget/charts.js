// Bars for numbers per turn: an SVG to look at, the same numbers as a table for everybody else.

import { el, svg } from "./dom.js";

const WIDTH = 320;
const HEIGHT = 110;
const LEFT = 38; // for the numbers of the axis
const BOTTOM = 16;
const TOP = 6;

/**
 * A chart with one bar per turn; the parts of a bar stand on each other.
 *
 * @param {object} chart
 * @param {string} chart.testid
 * @param {string} chart.title
 * @param {{kind: string, label: string}[]} chart.parts from the bottom up; `kind` is a field of a turn
 * @param {(value: number) => string} chart.format
 * @param {object[]} turns each with `turn`, its number, and a field for every part
 */
export function chart({ testid, title, parts, format }, turns) {
  const sum = (turn) => parts.reduce((total, { field }) => total + turn[field], 0);
  const top = ceiling(Math.max(1, ...turns.map(sum)));
  const scale = (value) => (value / top) * (HEIGHT - TOP - BOTTOM);
  const floor = HEIGHT - BOTTOM;
  const step = (WIDTH - LEFT) / Math.max(turns.length, 8);
  const width = Math.min(step * 0.72, 22);
  const drawing = svg("svg", {
    class: "chart",
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
    role: "img",
    "aria-label": described(title, parts, turns, format),
    "data-testid": testid,
  });

  for (const value of [0, top / 2, top]) {
    const y = floor - scale(value);
    drawing.append(svg("line", { class: "chart-line", x1: LEFT, x2: WIDTH, y1: y, y2: y }));
    drawing.append(svg("text", { class: "chart-number", x: LEFT - 5, y: y + 3, "text-anchor": "end" }, format(value)));
  }
  const every = Math.ceil(turns.length / 10);
  turns.forEach((turn, at) => {
    const x = LEFT + at * step + (step - width) / 2;
    let y = floor;
    for (const { kind, field, label } of parts) {
      const height = scale(turn[field]);
      y -= height;
      const bar = {
        class: `bar bar-${kind}`,
        x,
        y,
        width,
        height,
        "data-testid": "bar",
        "data-turn": turn.turn,
        "data-value": turn[field],
        "data-kind": kind,
      };
      drawing.append(svg("rect", bar, svg("title", {}, `Turn ${turn.turn}, ${label}: ${format(turn[field])}`)));
    }
    if (at % every === 0) {
      drawing.append(
        svg(
          "text",
          { class: "chart-number", x: x + width / 2, y: HEIGHT - 4, "text-anchor": "middle" },
          String(turn.turn),
        ),
      );
    }
  });
  return el(
    "figure",
    { class: "figure" },
    el("figcaption", {}, el("span", {}, title), ...legend(parts)),
    drawing,
    table(title, parts, turns, format),
  );
}

function legend(parts) {
  if (parts.length < 2) return [];
  return parts.map(({ kind, label }) => el("span", { class: `legend legend-${kind}` }, label));
}

function table(title, parts, turns, format) {
  const head = el(
    "tr",
    {},
    el("th", { scope: "col" }, "Turn"),
    ...parts.map(({ label }) => el("th", { scope: "col" }, label)),
  );
  const rows = turns.map((turn) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, String(turn.turn)),
      ...parts.map(({ field }) => el("td", {}, format(turn[field]))),
    ),
  );
  const numbers = el(
    "table",
    {},
    el("caption", { class: "sr-only" }, title),
    el("thead", {}, head),
    el("tbody", {}, ...rows),
  );
  return el("details", { class: "numbers" }, el("summary", {}, "As a table"), numbers);
}

function described(title, parts, turns, format) {
  if (!turns.length) return `${title}: no turns yet`;
  const last = turns.at(-1);
  const values = parts.map(({ label, field }) => `${label} ${format(last[field])}`).join(", ");
  return `${title}: ${turns.length} ${turns.length === 1 ? "turn" : "turns"}, in the last one ${values}`;
}

/** The next round number: 1, 2 or 5 times a power of ten. */
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((factor) => factor * power).find((round) => round >= value);
}
