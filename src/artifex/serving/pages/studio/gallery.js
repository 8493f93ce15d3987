// What was drawn, with how to draw it again.

import { curl, python } from "./commands.js";
import { copyText, el, save } from "./dom.js";
import { montage, picture } from "./figures.js";
import { keep, kept } from "./kept.js";

const SHOWN = 9; // pictures of an item

export class Gallery {
  // `onReuse` is called with an item whose fields are wanted again.
  constructor(onReuse) {
    this.onReuse = onReuse;
    this.items = kept();
    this.newestLive = null; // the item that a live panel drew last
    this.list = el("ul", { className: "items" });
    this.status = el("p", { className: "status", role: "status", "aria-live": "polite" });
    const clear = { click: () => this.change([], "The gallery is empty now.") };
    this.clear = el("button", { type: "button", className: "quiet", on: clear }, "Remove all");
    const head = el("div", { className: "row head" }, el("h2", {}, "Gallery"), this.status, this.clear);
    this.element = el("section", { className: "gallery", "aria-label": "Gallery" }, head, this.list);
    this.show();
  }

  // Adds what was drawn. What a live panel draws takes the place of what it drew just before.
  add(item, isLive) {
    const replaces = isLive && this.items.length > 0 && this.items[0] === this.newestLive;
    if (isLive) this.newestLive = item;
    this.change([item, ...(replaces ? this.items.slice(1) : this.items)], "");
  }

  remove(item) {
    const index = this.items.indexOf(item);
    this.change(this.items.filter((other) => other !== item), "Removed.");
    const buttons = this.list.querySelectorAll(".remove");
    (buttons[Math.min(index, buttons.length - 1)] ?? this.clear).focus();
  }

  change(items, words) {
    const number = keep(items);
    const dropped = items.length - number;
    this.items = number > 0 ? items.slice(0, number) : items.slice(0, 1);
    this.status.textContent = words;
    if (number === 0 && items.length > 0) {
      this.status.textContent = "The browser has no room for this one: it is gone when you leave.";
    } else if (dropped > 0) {
      this.status.textContent = `No room for more: the oldest ${dropped === 1 ? "one is" : `${dropped} are`} gone.`;
    }
    this.show();
  }

  show() {
    this.element.hidden = this.items.length === 0 && this.status.textContent === "";
    this.clear.hidden = this.items.length === 0;
    this.list.replaceChildren(...this.items.map((item) => this.card(item)));
  }

  card(item) {
    const { seed, num_samples, ...fields } = item.request;
    const facts = { ...(seed !== undefined && { seed }), ...fields };
    const shown = item.pictures.slice(0, SHOWN).map((url, i) => picture(`${item.endpoint}, picture ${i + 1}`, url));
    const thumbs = el("div", { className: "thumbs" }, ...shown);
    thumbs.style.setProperty("--columns", String(Math.ceil(Math.sqrt(shown.length))));
    const terms = Object.entries(facts).map(([name, value]) =>
      el("div", {}, el("dt", {}, name.replaceAll("_", " ")), el("dd", {}, String(value))),
    );
    const button = (words, label, onClick, className = "quiet") =>
      el("button", { type: "button", className, "aria-label": label, title: label, on: { click: onClick } }, words);
    const copy = (make, what) => async () => {
      await copyText(make(item));
      this.status.textContent = `${what} copied.`;
    };
    return el(
      "li",
      { className: "card item" },
      thumbs,
      el("h3", {}, item.endpoint, num_samples > 1 ? el("span", { className: "count" }, ` × ${num_samples}`) : null),
      el("dl", {}, ...terms),
      el(
        "div",
        { className: "tools" },
        button("Reuse", "Reuse its fields", () => this.onReuse(item)),
        button("curl", "Copy as curl", copy(curl, "A curl command is")),
        button("Python", "Copy as Python", copy(python, "Python is")),
        button("Save", "Download", async () => {
          save(await montage(item.pictures), `${item.endpoint}-${seed ?? "drawn"}.png`);
        }),
        button("Remove", "Remove from the gallery", () => this.remove(item), "quiet remove"),
      ),
    );
  }
}
