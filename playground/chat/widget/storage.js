// What this browser remembers. Where it may not remember (private windows, full disks), nothing breaks.

export function recall(key, { inTab = false } = {}) {
  try {
    return JSON.parse((inTab ? sessionStorage : localStorage).getItem(`chat.${key}`));
  } catch {
    return null;
  }
}

/** `null` forgets; `inTab` remembers until the tab is closed, and for that tab only. */
export function remember(key, value, { inTab = false } = {}) {
  try {
    const storage = inTab ? sessionStorage : localStorage;
    if (value === null) storage.removeItem(`chat.${key}`);
    else storage.setItem(`chat.${key}`, JSON.stringify(value));
  } catch {
    // Then it is not remembered.
  }
}
