// From one of one's own pictures to another.

import { generate, stream } from "./api.js";
import { control, Controls } from "./controls.js";
import { el } from "./dom.js";
import { lerp, slerp } from "./latents.js";
import { Done, numSteps, panel, seconds } from "./panel.js";
import { Player } from "./player.js";
import { Runner } from "./runner.js";
import { Upload } from "./uploads.js";

// `way` is {encode, decode, latent}, endpoints and the name of what goes from one to the other; or
// {interpolate}, an endpoint that takes both pictures and a weight.
export function interpolatePanel(model, way) {
  const endpoint = way.interpolate ?? way.encode;
  const inputs = endpoint.controls.filter((one) => one.kind === "picture");
  const [first, second] = [inputs[0], inputs[1] ?? inputs[0]];
  const begin = () => runner.start({ isLive: true });
  const uploads = [new Upload(first, "From", begin), new Upload(second, "To", begin)];
  const changed = () => runner.changed();
  const most = Math.min(128, (way.decode ?? endpoint).max_rows);
  const frames = control(
    {
      name: "frames", kind: "integer", default: Math.min(way.interpolate ? 9 : 33, most), minimum: 2, maximum: most,
      doc: "Pictures from the first to the last.",
    },
    changed,
  );
  const mode = {
    name: "mode", kind: "choice", default: "linear", choices: ["linear", "spherical"],
    doc: "On the line between latents, or on the arc.",
  };
  const controls = new Controls(
    way.interpolate ? endpoint.controls.filter((one) => one.name !== "weight") : [mode],
    changed,
  );
  const player = new Player({ isRound: false });

  async function run(job) {
    const begun = performance.now();
    const count = Math.max(2, frames.get() ?? frames.default);
    const weights = Array.from({ length: count }, (_, i) => i / (count - 1));
    job.say("Under way …");
    const pictures = await (way.interpolate ? byWeight(weights, job) : byLatents(weights, job));
    player.load(pictures, weights.map((weight) => `${Math.round(100 * weight)} %`));
    job.say(`${count} frames in ${seconds(begun)}`);
    player.playIfWelcome();
  }

  async function byLatents(weights, { signal }) {
    const pictures = uploads.map((upload) => upload.url);
    const encoded = await generate(way.encode.name, { [first.name]: pictures, resize: true }, signal);
    const [from, to] = encoded[way.latent];
    const [taken] = way.decode.controls.filter((one) => one.is_needed);
    const [shown] = way.decode.outputs.filter((one) => one.is_picture);
    const between = controls.values().mode === "spherical" ? slerp : lerp;
    const body = { [taken.name]: weights.map((weight) => between(from, to, weight)), pictures: "png" };
    return (await generate(way.decode.name, body, signal))[shown.name];
  }

  async function byWeight(weights, { signal, progress }) {
    const [from, to] = await Promise.all(uploads.map((upload) => upload.scaled()));
    const [shown] = endpoint.outputs.filter((one) => one.is_picture);
    const body = {
      [first.name]: weights.map(() => from),
      [second.name]: weights.map(() => to),
      weight: weights,
      ...controls.values(),
      ...(endpoint.takes_steps && { every: 5 }),
      pictures: "png",
    };
    const done = new Done(weights.length, numSteps(endpoint, controls));
    const pictures = [];
    for await (const event of stream(endpoint.name, body, signal)) {
      if (!event.preview) pictures[event.index] = event[shown.name];
      progress(done.note(event));
    }
    return pictures;
  }

  const canRun = () => uploads.every((upload) => upload.url !== null);
  const runner = new Runner("Interpolate", run, () => {
    if (!canRun()) runner.status.textContent = "Give it two pictures.";
    return canRun();
  });
  const pair = el("div", { className: "pair" }, ...uploads.map((upload) => upload.element));
  const about = "The pictures between two of your own.";
  const made = panel(about, [pair, player.element], [frames.element, controls.element], runner);
  made.paste = (file) => (uploads.find((upload) => upload.url === null) ?? uploads[1]).take(file);
  return made;
}
