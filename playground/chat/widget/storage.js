// What this browser remembers. Where it may not remember (private windows, full disks), nothing breaks.

export function recall(key) {
  try {
    return JSON.parse(localStorage.getItem(`chat.${key}`));
  } catch {
    return null;
  }
}

/** `null` and `""` forget. */
export function remember(key, value) {
  try {
    if (value === null || value === "") localStorage.removeItem(`chat.${key}`);
    else localStorage.setItem(`chat.${key}`, JSON.stringify(value));
  } catch {
    // Then it is not remembered.
  }
}
