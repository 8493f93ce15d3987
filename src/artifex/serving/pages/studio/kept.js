// What the browser keeps of the gallery, from one visit to the next.

import { BASE } from "./api.js";

const NAME = `artifex-gallery:${BASE.pathname}`;
const MAX_ITEMS = 60;
const MAX_CHARACTERS = 3_000_000; // browsers give a site about 5 million

// The items, newest first.
export function kept() {
  try {
    const items = JSON.parse(localStorage.getItem(NAME) ?? "[]");
    return items.filter((item) => Array.isArray(item.pictures) && typeof item.request === "object");
  } catch {
    return []; // of a browser that keeps nothing, or of something else by this name
  }
}

// Keeps items, without the oldest where they are too many; how many of them are kept.
export function keep(items) {
  let number = Math.min(items.length, MAX_ITEMS);
  for (; number > 0; number -= 1) {
    const text = JSON.stringify(items.slice(0, number));
    if (text.length > MAX_CHARACTERS) continue;
    if (written(text)) return number;
  }
  written("[]");
  return 0;
}

function written(text) {
  try {
    localStorage.setItem(NAME, text);
    return true;
  } catch {
    return false; // the quota, or a browser that keeps nothing
  }
}
