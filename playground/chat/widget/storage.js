// What this browser remembers. Where it may not remember (private windows, full disks), nothing breaks.

export function recall(key, { inTab = false } = {}) {
  try {
    return JSON.parse((inTab ? sessionStorage : localStorage).getItem(`chat.${key}`));
  } catch {
    return null;
  }
}

/** What is kept by conversation, under one key; whatever else stands there counts as nothing. */
export function recallAll(key) {
  const all = recall(key);
  return all !== null && typeof all === "object" && !Array.isArray(all) ? all : {};
}

/** `null` forgets that of this conversation. The others' are read anew: another tab may have written them. */
export function rememberOne(key, conversation, value) {
  const all = recallAll(key);
  if (value === null) delete all[conversation];
  else all[conversation] = value;
  remember(key, Object.keys(all).length ? all : null);
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
