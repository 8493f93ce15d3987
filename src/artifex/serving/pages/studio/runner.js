// Runs one thing at a time, for a button: with progress, cancel, and words for what went wrong.

import { el, newId } from "./dom.js";

const SETTLED = 150; // milliseconds without a change, after which a live panel draws

export class Runner {
  // `work({signal, isLive, progress, say})` does it; `canRun()` says whether there is what it needs.
  constructor(verb, work, canRun = () => true) {
    this.work = work;
    this.canRun = canRun;
    this.abort = null;
    this.timer = 0;
    const start = { click: () => this.start() };
    this.button = el("button", { type: "button", className: "primary run", title: "Ctrl+Enter", on: start }, verb);
    this.stop = el(
      "button",
      { type: "button", className: "cancel", title: "Escape", disabled: true, on: { click: () => this.cancel() } },
      "Cancel",
    );
    this.live = el("input", { type: "checkbox", id: newId("live") });
    this.live.addEventListener("change", () => this.changed());
    const live = el(
      "label",
      { className: "check live", htmlFor: this.live.id, title: "Runs again with the same seed" },
      this.live,
      "Live: every change at once",
    );
    this.bar = el("progress", { hidden: true, max: 1, "aria-label": "Progress" });
    this.status = el("p", { className: "status", role: "status", "aria-live": "polite" });
    this.error = el("p", { className: "error", role: "alert" });
    const buttons = el("div", { className: "row" }, this.button, this.stop);
    this.element = el("div", { className: "actions" }, buttons, this.error, live);
    this.report = el("div", { className: "report" }, this.bar, this.status);
  }

  get isBusy() {
    return this.abort !== null;
  }

  // Runs it, in place of what is running.
  async start({ isLive = false } = {}) {
    clearTimeout(this.timer);
    if (!this.canRun()) return;
    this.abort?.abort();
    const abort = new AbortController();
    this.abort = abort;
    this.stop.disabled = false;
    this.error.textContent = "";
    this.bar.hidden = false;
    this.bar.removeAttribute("value");
    const isNewest = () => this.abort === abort;
    const job = {
      signal: abort.signal,
      isLive,
      progress: (share) => isNewest() && (this.bar.value = share),
      say: (words) => isNewest() && (this.status.textContent = words),
    };
    try {
      await this.work(job);
    } catch (error) {
      if (isNewest()) this.failed(error);
    } finally {
      if (isNewest()) {
        this.abort = null;
        this.stop.disabled = true;
        this.bar.hidden = true;
      }
    }
  }

  cancel() {
    clearTimeout(this.timer);
    this.abort?.abort();
  }

  // Has a live panel run again, once there are no more changes for a moment.
  changed() {
    if (!this.live.checked) return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.start({ isLive: true }), SETTLED);
  }

  failed(error) {
    if (error.name === "AbortError") {
      this.status.textContent = "Cancelled.";
      return;
    }
    this.status.textContent = "";
    this.error.textContent = error.message;
    if (error.needsKey || error.status === 503 || error.status === 0) {
      window.dispatchEvent(new CustomEvent("artifex-changed"));
    }
    if (error.status === undefined) console.error(error); // of the studio itself
  }
}
