// Light or dark: as the system has it, until somebody chooses. Loaded before the first paint.

import { recall, remember } from "./storage.js";

const system = matchMedia("(prefers-color-scheme: dark)");

export const isDark = () => (recall("theme") ?? (system.matches ? "dark" : "light")) === "dark";

export function toggleTheme() {
  const next = isDark() ? "light" : "dark";
  remember("theme", next);
  apply();
}

function apply() {
  document.documentElement.dataset.theme = isDark() ? "dark" : "light";
}

system.addEventListener("change", apply);
addEventListener("storage", apply); // chosen in another tab
apply();
