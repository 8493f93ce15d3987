// A place for one's own picture: dropped, pasted, or chosen from files.

import { el, newId } from "./dom.js";
import { decoded, picture } from "./figures.js";

const TAKEN = ["image/png", "image/jpeg", "image/webp", "image/bmp"]; // by the server
const MAX_BYTES = 4 << 20; // of a file that is sent as it is
const MAX_PIXELS = 2048; // a side, of others

export class Upload {
  // `control` is the input that the picture is for; `onChange` is called when there is another.
  constructor(control, title, onChange) {
    this.control = control;
    this.onChange = onChange;
    this.url = null;
    this.image = picture("");
    this.image.hidden = true;
    const id = newId("file");
    this.file = el("input", { id, type: "file", accept: "image/*", className: "unseen" });
    this.file.dataset.picture = control.name;
    this.file.addEventListener("change", () => this.file.files.length && this.take(this.file.files[0]));
    this.error = el("p", { className: "error", role: "alert" });
    this.hint = el("span", { className: "hint" }, el("strong", {}, title), "Drop, paste or choose a picture");
    this.zone = el("label", { className: "zone", htmlFor: id }, this.image, this.hint);
    this.element = el("div", { className: "upload" }, this.file, this.zone, this.error);
    this.title = title;
    const over = (isOver) => (event) => {
      event.preventDefault();
      this.zone.classList.toggle("over", isOver);
    };
    this.zone.addEventListener("dragover", over(true));
    this.zone.addEventListener("dragleave", over(false));
    this.zone.addEventListener("drop", (event) => {
      over(false)(event);
      const file = event.dataTransfer.files[0];
      if (file) this.take(file);
    });
  }

  async take(file) {
    this.error.textContent = "";
    try {
      this.url = await readable(file);
    } catch {
      this.error.textContent = `${file.name || "That"} is no picture that this browser can read.`;
      return;
    }
    this.image.src = this.url;
    this.image.hidden = false;
    this.image.alt = `Your picture for ${this.control.name}`;
    this.zone.classList.add("filled");
    this.hint.replaceChildren(el("strong", {}, this.title));
    this.zone.title = "Drop, paste or choose another";
    this.onChange();
  }

  // The picture in the size that the model takes, which is small enough to send many times.
  async scaled() {
    const [height, width] = this.control.shape;
    return drawn(await decoded(this.url), width, height);
  }
}

// A picture file as a data URL that the server can read.
async function readable(file) {
  const url = await dataUrl(file);
  const image = await decoded(url);
  if (TAKEN.includes(file.type) && file.size <= MAX_BYTES) return url;
  const [width, height] = [image.naturalWidth || MAX_PIXELS, image.naturalHeight || MAX_PIXELS];
  const scale = Math.min(1, MAX_PIXELS / Math.max(width, height));
  return drawn(image, Math.round(scale * width), Math.round(scale * height));
}

function drawn(image, width, height) {
  const canvas = el("canvas", { width, height });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, width, height);
  return canvas.toDataURL("image/png");
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
