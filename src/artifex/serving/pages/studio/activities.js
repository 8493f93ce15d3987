// What can be done with a model, by what its endpoints take and give.

import { titled } from "./dom.js";
import { drawPanel } from "./draw.js";
import { interpolatePanel } from "./interpolate.js";
import { transformPanel } from "./transform.js";
import { walkPanel } from "./walk.js";
import { writePanel } from "./write.js";

const needed = (endpoint) => endpoint.controls.filter((one) => one.is_needed);
const isPlain = (endpoint) => needed(endpoint).every((one) => !["picture", "vector"].includes(one.kind));
const givesPicture = (endpoint) => endpoint.outputs.some((one) => one.is_picture);

// A list of {id, title, open}, where `open` makes the panel.
export function activities(model, gallery) {
  const found = [];
  const add = (id, title, open) => found.push({ id, title, open });
  const by = Object.fromEntries(model.endpoints.map((endpoint) => [endpoint.endpoint, endpoint]));
  for (const endpoint of model.endpoints.filter((one) => givesPicture(one) && isPlain(one))) {
    const title = endpoint.endpoint === "generate" ? "Draw" : titled(endpoint.endpoint);
    add(endpoint.endpoint, title, () => drawPanel(model, endpoint, gallery));
  }
  for (const endpoint of model.endpoints.filter((one) => one.texts.length > 0 && isPlain(one))) {
    const title = endpoint.endpoint === "generate" ? "Write" : titled(endpoint.endpoint);
    add(endpoint.endpoint, title, () => writePanel(endpoint));
  }
  const way = waysBetween(by);
  const transforms = model.endpoints.filter((one) => one !== way?.interpolate && takesPictures(one));
  const [toPictures, toNumbers] = [true, false].map((is) => transforms.filter((one) => givesPicture(one) === is));
  const addTransform = (endpoint) => {
    const title = titled(endpoint.endpoint);
    add(endpoint.endpoint, title, () => transformPanel(title, endpoint));
  };
  toPictures.filter((one) => one.endpoint === "reconstruct").forEach(addTransform);
  if (way) add("interpolate", "Interpolate", () => interpolatePanel(model, way));
  const decode = by.decode;
  if (decode && givesPicture(decode) && isVector(needed(decode))) {
    add("walk", "Latent walk", () => walkPanel(model, decode));
  }
  [...toPictures.filter((one) => one.endpoint !== "reconstruct"), ...toNumbers].forEach(addTransform);
  return found;
}

// Endpoints whose pictures people give, and whose other inputs are single values.
function takesPictures(endpoint) {
  const inputs = needed(endpoint);
  return inputs.some((one) => one.kind === "picture") && !inputs.some((one) => one.kind === "vector");
}

function isVector(inputs) {
  return inputs.length === 1 && inputs[0].kind === "vector" && inputs[0].shape.length === 1;
}

// How to get from one picture to another: by an endpoint of that name, else by latents.
function waysBetween({ interpolate, encode, decode }) {
  if (interpolate && givesPicture(interpolate) && needed(interpolate).length === 2 && takesPictures(interpolate)) {
    return { interpolate };
  }
  if (!encode || !decode || !givesPicture(decode)) return null;
  const [taken, ...others] = needed(decode);
  const [given, ...more] = needed(encode);
  const latent = ["mean", "z"].map((name) => encode.outputs.find((one) => one.name === name)).find(Boolean);
  const fits = latent && taken && String(latent.shape) === String(taken.shape);
  return fits && !others.length && given?.kind === "picture" && !more.length
    ? { encode, decode, latent: latent.name }
    : null;
}
