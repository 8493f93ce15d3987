// Draws samples, and shows them as they come out of the noise.

import { stream } from "./api.js";
import { countControl, Controls } from "./controls.js";
import { el } from "./dom.js";
import { Grid } from "./figures.js";
import { Done, numSteps, panel, previewEvery, seconds } from "./panel.js";
import { Runner } from "./runner.js";
import { SeedControl } from "./seed.js";

const MOST = 64; // pictures at once, of those that the server would draw

export function drawPanel(model, endpoint, gallery) {
  const grid = new Grid();
  const output = endpoint.outputs.find((one) => one.is_picture).name;
  const changed = () => runner.changed();
  const count = countControl("pictures", 4, MOST, endpoint, changed);
  const seed = endpoint.draws ? new SeedControl(changed) : null;
  const controls = new Controls(endpoint.controls, changed);

  async function draw({ signal, isLive, progress, say }) {
    const start = performance.now();
    const number = count.get() ?? count.default;
    const steps = numSteps(endpoint, controls);
    const fields = controls.values();
    const request = { num_samples: number, ...(seed && { seed: seed.next(isLive) }), ...fields };
    const body = { ...request, ...previewEvery(endpoint, steps), pictures: "png" };
    say(`Drawing ${plural(number)} …`);
    const done = new Done(number, steps);
    const pictures = [];
    let version = "";
    let isBegun = false;
    try {
      for await (const event of stream(endpoint.name, body, signal)) {
        if (!isBegun) grid.resize(number, "Not there yet");
        isBegun = true;
        const about = `${endpoint.name}, picture ${event.index + 1}`;
        grid.show(event.index, event[output], event.preview ? event.step : null, about);
        if (!event.preview) pictures[event.index] = event[output];
        const share = done.note(event);
        if (done.isKnown) progress(share);
        version = event.model_version;
      }
    } finally {
      grid.settle();
    }
    const withSeed = seed ? `, seed ${request.seed}` : "";
    say(`${plural(number)} in ${seconds(start)}${withSeed}`);
    gallery.add({ model: model.name, endpoint: endpoint.name, version, request, pictures }, isLive);
  }

  const runner = new Runner("Draw", draw);
  const empty = el("p", { className: "empty" }, "What you draw appears here.");
  const stage = el("div", { className: "drawn" }, grid.element, empty);
  const made = panel(endpoint.doc, [stage], [count.element, controls.element, ...(seed ? [seed.element] : [])], runner);
  made.set = (request) => {
    const { num_samples, seed: number, ...fields } = request;
    count.set(num_samples);
    controls.set(fields);
    if (seed) seed.set(number);
  };
  return made;
}

function plural(number) {
  return number === 1 ? "1 picture" : `${number} pictures`;
}
