// A walk through the latents of a model: from one draw of its prior to the next, and round to the first.

import { generate } from "./api.js";
import { control } from "./controls.js";
import { normals, slerp } from "./latents.js";
import { panel, seconds } from "./panel.js";
import { Player } from "./player.js";
import { Runner } from "./runner.js";
import { SeedControl } from "./seed.js";

export function walkPanel(model, endpoint) {
  const taken = endpoint.controls.find((one) => one.kind === "vector");
  const shown = endpoint.outputs.find((one) => one.is_picture).name;
  const changed = () => runner.changed();
  const made = (name, kind, value, minimum, maximum, doc) =>
    control({ name, kind, default: value, minimum, maximum, doc }, changed);
  const stops = made("stops", "integer", 6, 2, 16, "Random latents on the way.");
  const between = made("frames", "integer", 16, 1, 32, "From one stop to the next.");
  const spread = made("spread", "number", 1, 0, 3, "Deviation of the latents; the prior's is 1.");
  const seed = new SeedControl(changed);
  const player = new Player({ isRound: true });

  async function walk({ signal, isLive, say }) {
    const begun = performance.now();
    const [count, frames, deviation] = [stops, between, spread].map((one) => one.get() ?? one.default);
    const number = seed.next(isLive);
    say("Under way …");
    const keys = normals(number, count, taken.shape[0]).map((key) => key.map((value) => deviation * value));
    const latents = keys.flatMap((key, i) =>
      Array.from({ length: frames }, (_, k) => slerp(key, keys[(i + 1) % count], k / frames)),
    );
    const body = { [taken.name]: latents, pictures: "png" };
    const pictures = (await generate(endpoint.name, body, signal))[shown];
    player.load(pictures, pictures.map((_, i) => `${i + 1} of ${pictures.length}`));
    say(`${pictures.length} frames in ${seconds(begun)}, seed ${number}`);
    if (!isLive) player.playIfWelcome();
  }

  const runner = new Runner("Walk", walk);
  const about = "From one random latent to the next, decoded, and round to the first.";
  return panel(about, [player.element], [stops.element, between.element, spread.element, seed.element], runner);
}
