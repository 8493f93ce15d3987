// Frames one after the other: a slider to scrub them, and play.

import { fill } from "./controls.js";
import { el } from "./dom.js";
import { picture } from "./figures.js";

const MILLISECONDS = 80; // a frame

export class Player {
  // Frames that go on from the last to the first are played round and round; others there and back.
  constructor({ isRound }) {
    this.isRound = isRound;
    this.frames = [];
    this.step = 1;
    this.shownAt = 0;
    this.image = picture("");
    this.slider = el("input", { type: "range", min: 0, max: 0, step: 1, "aria-label": "Frame", className: "scrub" });
    this.slider.addEventListener("input", () => {
      this.pause();
      this.show(Number(this.slider.value));
    });
    this.button = el("button", { type: "button", className: "icon play", on: { click: () => this.toggle() } });
    this.where = el("output", { className: "where" });
    const bar = el("div", { className: "row player-bar" }, this.button, this.slider, this.where);
    this.element = el("div", { className: "player", hidden: true }, el("figure", { className: "cell" }, this.image), bar);
    this.pause();
  }

  // Shows frames; `places` says of each what it is.
  load(frames, places) {
    const before = this.frames.length ? Number(this.slider.value) : 0;
    this.frames = frames;
    this.places = places;
    this.slider.max = frames.length - 1;
    this.element.hidden = frames.length === 0;
    if (frames.length) this.show(Math.min(before, frames.length - 1));
  }

  show(index) {
    this.slider.value = index;
    fill(this.slider);
    this.image.src = this.frames[index];
    this.image.alt = this.places[index];
    this.where.textContent = this.places[index];
  }

  get isPlaying() {
    return this.button.getAttribute("aria-label") === "Pause";
  }

  // Plays, unless people asked for less motion.
  playIfWelcome() {
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) this.play();
  }

  play() {
    if (this.isPlaying || this.frames.length < 2) return;
    this.button.textContent = "❚❚";
    this.button.setAttribute("aria-label", "Pause");
    const tick = (now) => {
      if (!this.isPlaying || !this.element.isConnected) return;
      if (now - this.shownAt >= MILLISECONDS) {
        this.shownAt = now;
        this.show(this.next());
      }
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  pause() {
    this.button.textContent = "▶";
    this.button.setAttribute("aria-label", "Play");
  }

  toggle() {
    if (this.isPlaying) this.pause();
    else this.play();
  }

  next() {
    const now = Number(this.slider.value);
    if (this.isRound) return (now + 1) % this.frames.length;
    if (now + this.step < 0 || now + this.step >= this.frames.length) this.step = -this.step;
    return now + this.step;
  }
}
