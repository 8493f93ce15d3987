// How every activity is laid out: what it shows beside what it is told.

import { el } from "./dom.js";

// `stage` is what is shown; `given` are the controls; the runner's buttons stand under these.
export function panel(doc, stage, given, runner) {
  const about = el("p", { className: "about" }, doc);
  return {
    runner,
    element: el(
      "div",
      { className: "panel" },
      el("div", { className: "stage" }, ...stage, runner.report),
      el("div", { className: "side" }, about, ...given, runner.element),
    ),
    paste: () => {},
    set: () => {},
  };
}

// The steps that a row takes, where that is known.
export function numSteps(endpoint, controls) {
  return endpoint.takes_steps ? controls.value("num_steps") : null;
}

// Steps between previews: about 24 of them, however many steps there are.
export function previewEvery(endpoint, steps) {
  return endpoint.takes_steps ? { every: Math.max(1, Math.round((steps ?? 24) / 24)) } : {};
}

// The share that is done of rows which take steps, as events tell it.
export class Done {
  constructor(numRows, steps) {
    this.steps = steps;
    this.shares = new Array(numRows).fill(0);
  }

  // Notes an event; the share of all rows.
  note(event) {
    this.shares[event.index] = event.preview ? Math.min(event.step / (this.steps ?? Infinity), 1) : 1;
    return this.shares.reduce((sum, share) => sum + share, 0) / this.shares.length;
  }

  get isKnown() {
    return this.steps !== null || this.shares.length > 1;
  }
}

export function seconds(start) {
  const passed = (performance.now() - start) / 1000;
  return `${passed < 10 ? passed.toFixed(1) : Math.round(passed)} s`;
}
