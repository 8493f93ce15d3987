// The seed of a draw, with dice.

import { el, newId } from "./dom.js";

const MAX_SEED = 2 ** 32 - 1;

export class SeedControl {
  // `onChange` is called after each change that a person makes.
  constructor(onChange) {
    const id = newId("seed");
    this.input = el("input", { id, type: "number", min: 0, max: MAX_SEED, step: 1, inputMode: "numeric" });
    this.input.dataset.field = "seed";
    this.input.addEventListener("input", () => {
      this.keep.checked = true;
      onChange();
    });
    const dice = el("button", { type: "button", className: "icon", title: "Another seed", "aria-label": "Another seed" }, "⚄");
    dice.addEventListener("click", () => {
      this.roll();
      onChange();
    });
    this.keep = el("input", { type: "checkbox", id: `${id}-keep` });
    this.element = el(
      "div",
      { className: "control seed" },
      el("label", { htmlFor: id }, "seed"),
      el("div", { className: "row" }, this.input, dice),
      el("label", { className: "check", htmlFor: this.keep.id }, this.keep, "Keep seed"),
    );
    this.roll();
  }

  roll() {
    this.input.value = crypto.getRandomValues(new Uint32Array(1))[0];
  }

  // The seed to draw with; a new one, unless it is to be kept.
  next(isKept) {
    if (this.input.value === "" || !(isKept || this.keep.checked)) this.roll();
    return Number(this.input.value);
  }

  // Has a seed, and keeps it.
  set(seed) {
    this.input.value = seed;
    this.keep.checked = true;
  }
}
