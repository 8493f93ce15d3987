// Pictures on the page.

import { el } from "./dom.js";

const TINY = 128; // pixels under which a picture shows them as squares

// A picture that fills the place it is given.
export function picture(alt, src) {
  const image = el("img", { alt });
  image.addEventListener("load", () => {
    image.classList.toggle("pixelated", Math.max(image.naturalWidth, image.naturalHeight) < TINY);
  });
  if (src) image.src = src;
  return image;
}

// A grid of places for pictures. Those that are there stay until others come, so that nothing flickers.
export class Grid {
  constructor() {
    this.element = el("div", { className: "grid" });
    this.cells = [];
  }

  resize(count, about) {
    while (this.cells.length > count) this.cells.pop().figure.remove();
    while (this.cells.length < count) {
      const image = picture("");
      const figure = el("figure", { className: "cell waits" }, image);
      this.cells.push({ figure, image });
      this.element.append(figure);
    }
    for (const { figure, image } of this.cells) {
      figure.classList.add("waits");
      figure.classList.remove("preview");
      image.dataset.step = "";
      image.alt = about;
    }
    this.element.style.setProperty("--columns", String(Math.ceil(Math.sqrt(count))));
  }

  show(index, src, step, alt) {
    const { figure, image } = this.cells[index];
    figure.classList.remove("waits");
    figure.classList.toggle("preview", step !== null);
    image.dataset.step = step ?? "";
    image.alt = alt;
    image.src = src;
  }

  // Takes the places away that nothing came for.
  settle() {
    for (const { figure, image } of [...this.cells]) {
      if (!image.hasAttribute("src")) {
        figure.remove();
        this.cells = this.cells.filter((cell) => cell.figure !== figure);
      }
      figure.classList.remove("waits", "preview");
    }
  }
}

// Several pictures as one, in a grid: a URL of a PNG.
export async function montage(urls) {
  if (urls.length === 1) return urls[0];
  const images = await Promise.all(urls.map(decoded));
  const columns = Math.ceil(Math.sqrt(images.length));
  const gap = 2;
  const [width, height] = [images[0].naturalWidth + gap, images[0].naturalHeight + gap];
  const canvas = el("canvas", { width: columns * width - gap });
  canvas.height = Math.ceil(images.length / columns) * height - gap;
  const context = canvas.getContext("2d");
  images.forEach((image, i) => context.drawImage(image, (i % columns) * width, Math.floor(i / columns) * height));
  return canvas.toDataURL("image/png");
}

export async function decoded(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return image;
}
