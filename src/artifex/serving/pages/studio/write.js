// Writes texts, and shows them as they are written.

import { stream } from "./api.js";
import { countControl, Controls } from "./controls.js";
import { copyText, el } from "./dom.js";
import { Done, panel, previewEvery, seconds } from "./panel.js";
import { Runner } from "./runner.js";
import { SeedControl } from "./seed.js";

const MOST = 16; // texts at once, of those that the server would write

export function writePanel(endpoint) {
  const [output] = endpoint.texts;
  const texts = el("div", { className: "texts" });
  const changed = () => runner.changed();
  const count = countControl("texts", 1, MOST, endpoint, changed);
  const seed = endpoint.draws ? new SeedControl(changed) : null;
  const controls = new Controls(endpoint.controls, changed);

  async function write({ signal, isLive, progress, say }) {
    const start = performance.now();
    const number = count.get() ?? count.default;
    const tokens = controls.value("num_tokens");
    const drawn = seed ? { seed: seed.next(isLive) } : {};
    const body = {
      num_samples: number, ...drawn, ...controls.values(), ...previewEvery(endpoint, tokens), outputs: [output],
    };
    say("Writing …");
    const done = new Done(number, tokens);
    let shown = [];
    for await (const event of stream(endpoint.name, body, signal)) {
      if (!shown.length) {
        shown = Array.from({ length: number }, () => el("p", { className: "writing", tabIndex: 0 }));
        texts.replaceChildren(...shown);
      }
      shown[event.index].textContent = event[output];
      shown[event.index].classList.toggle("preview", Boolean(event.preview));
      const share = done.note(event);
      if (done.isKnown) progress(share);
    }
    say(`${number === 1 ? "1 text" : `${number} texts`} in ${seconds(start)}${seed ? `, seed ${drawn.seed}` : ""}`);
  }

  async function copy() {
    await copyText([...texts.children].map((one) => one.textContent).join("\n\n"));
    runner.status.textContent = "Copied.";
  }

  const runner = new Runner("Write", write);
  const empty = el("p", { className: "empty" }, "What is written appears here.");
  const copying = el("button", { type: "button", className: "quiet copy", on: { click: copy } }, "Copy");
  const stage = el("div", { className: "written" }, texts, empty, copying);
  return panel(endpoint.doc, [stage], [controls.element, count.element, ...(seed ? [seed.element] : [])], runner);
}
