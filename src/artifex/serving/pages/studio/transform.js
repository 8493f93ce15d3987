// Runs an endpoint on one's own pictures: reconstructs them, fills their holes, tells their class.

import { stream } from "./api.js";
import { Controls } from "./controls.js";
import { el } from "./dom.js";
import { Grid } from "./figures.js";
import { Done, numSteps, panel, previewEvery, seconds } from "./panel.js";
import { Runner } from "./runner.js";
import { SeedControl } from "./seed.js";
import { Upload } from "./uploads.js";

export function transformPanel(title, endpoint) {
  const output = endpoint.outputs.find((one) => one.is_picture)?.name;
  const taken = endpoint.controls.filter((one) => one.kind === "picture");
  const start = () => runner.start({ isLive: true });
  const uploads = taken.map((one) => new Upload(one, taken.length > 1 ? one.doc || one.name : "Your picture", start));
  const changed = () => runner.changed();
  const controls = new Controls(endpoint.controls, changed);
  const seed = endpoint.draws ? new SeedControl(changed) : null;
  const grid = new Grid();
  const numbers = el("pre", { className: "numbers", hidden: true, tabIndex: 0, "aria-label": "Result" });
  const result = el("div", { className: "result" }, grid.element, numbers);

  async function run({ signal, isLive, progress, say }) {
    const begun = performance.now();
    const steps = numSteps(endpoint, controls);
    const inputs = Object.fromEntries(uploads.map((upload) => [upload.control.name, upload.url]));
    const body = {
      ...inputs,
      ...controls.values(),
      ...(seed && { seed: seed.next(isLive) }),
      ...previewEvery(endpoint, steps),
      resize: true,
      pictures: "png",
    };
    say("Under way …");
    const done = new Done(1, steps);
    for await (const event of stream(endpoint.name, body, signal)) {
      if (output) {
        if (!grid.cells.length) grid.resize(1, "");
        grid.show(0, event[output], event.preview ? event.step : null, title);
      } else {
        numbers.hidden = false;
        numbers.textContent = written(endpoint, event);
      }
      if (done.isKnown) progress(done.note(event));
    }
    say(`Done in ${seconds(begun)}`);
  }

  const canRun = () => uploads.every((upload) => upload.url !== null);
  const runner = new Runner(title, run, () => {
    if (!canRun()) runner.status.textContent = "Give it a picture first.";
    return canRun();
  });
  const pair = el(
    "div",
    { className: "pair" },
    ...uploads.map((upload) => upload.element),
    el("div", { className: "upload" }, result),
  );
  const given = [controls.element, ...(seed ? [seed.element] : [])];
  const made = panel(endpoint.doc, [pair], given, runner);
  made.paste = (file) => (uploads.find((upload) => upload.url === null) ?? uploads[0]).take(file);
  return made;
}

// Outputs as JSON to read: a few digits, vectors in a line.
function written(endpoint, event) {
  const lines = endpoint.outputs.map(({ name }) => `  ${JSON.stringify(name)}: ${short(event[name])}`);
  return `{\n${lines.join(",\n")}\n}`;
}

function short(value) {
  if (Array.isArray(value)) return `[${value.map(short).join(", ")}]`;
  if (typeof value !== "number") return JSON.stringify(value);
  return value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(5)));
}
