// Fields of an endpoint as controls.

import { el, newId } from "./dom.js";

const NUM_SHOWN = 5; // of the controls, where there are more
const SCALARS = new Set(["integer", "number", "text", "choice", "flag"]);

// Controls for everything that is one value: no pictures, no vectors, no seed.
export class Controls {
  // `onChange` is called after each change that a person makes.
  constructor(controls, onChange) {
    this.controls = controls.filter((control) => SCALARS.has(control.kind)).map((c) => control(c, onChange));
    const elements = this.controls.map((made) => made.element);
    const numShown = elements.length > NUM_SHOWN + 1 ? NUM_SHOWN : elements.length;
    this.rest = el("details", { className: "rest" }, el("summary", {}, "More fields"), ...elements.slice(numShown));
    this.element = el("div", { className: "controls" }, ...elements.slice(0, numShown));
    if (numShown < elements.length) this.element.append(this.rest);
  }

  // What was chosen, without what holds anyway.
  values() {
    const chosen = this.controls.map((made) => [made.name, made.get(), made.default]);
    return Object.fromEntries(chosen.filter(([, value, byDefault]) => value !== undefined && value !== byDefault)
      .map(([name, value]) => [name, value]));
  }

  // A value of its own or by default; null where there is neither.
  value(name) {
    const made = this.controls.find((one) => one.name === name);
    return made ? made.get() ?? made.default : null;
  }

  // Has what holds by default, but for some values.
  set(values) {
    for (const made of this.controls) made.set(values[made.name] ?? made.default);
    const isHidden = (made) => made.name in values && this.rest.contains(made.element);
    if (this.controls.some(isHidden)) this.rest.open = true;
  }
}

// One control: its element, and its value, which is undefined where nothing is said.
export function control(of, onChange) {
  const make = { choice, flag, text }[of.kind] ?? number;
  const id = newId(of.name);
  const made = make(of, id, onChange);
  const about = of.doc ? el("small", { id: `${id}-doc` }, of.doc) : null;
  const label = el("label", { htmlFor: id }, of.label ?? of.name.replaceAll("_", " "));
  const element = el("div", { className: `control ${of.kind}` }, label, made.element, about);
  if (about) made.input.setAttribute("aria-describedby", about.id);
  made.input.dataset.field = of.name;
  made.set(of.default);
  return { name: of.name, default: of.default, element, get: made.get, set: made.set };
}

// How many rows to ask for at once: `label` names them.
export function countControl(label, usual, most, endpoint, onChange) {
  const [value, maximum] = [usual, most].map((number) => Math.min(number, endpoint.max_rows));
  const of = { name: "num_samples", kind: "integer", label, default: value, minimum: 1, maximum, doc: "" };
  return control(of, onChange);
}

function number(of, id, onChange) {
  const step = of.kind === "integer" ? of.multiple ?? 1 : "any";
  const placeholder = of.default === null ? (of.is_needed ? "needed" : "any") : String(of.default);
  const input = el("input", { id, type: "number", step, placeholder, inputMode: "decimal" });
  const get = () => (input.value === "" ? undefined : Number(input.value));
  const span = spanOf(of);
  if (span === null) {
    input.addEventListener("input", onChange);
    return { element: input, input, get, set: (value) => (input.value = value ?? "") };
  }
  const [low, high] = span;
  const steps = of.kind === "integer" ? of.multiple ?? 1 : fineness(high - low);
  const label = `${of.label ?? of.name}, slider`;
  const slider = el("input", { type: "range", min: low, max: high, step: steps, "aria-label": label });
  slider.dataset.slider = of.name;
  const show = () => {
    slider.classList.toggle("unset", input.value === "" && of.default === null);
    slider.value = input.value === "" ? of.default ?? low : input.value;
    fill(slider);
  };
  slider.addEventListener("input", () => {
    input.value = slider.value;
    show();
    onChange();
  });
  input.addEventListener("input", () => {
    show();
    onChange();
  });
  const set = (value) => {
    input.value = value ?? "";
    show();
  };
  return { element: el("div", { className: "slider" }, slider, input), input, get, set };
}

// Shows by a property how far a slider is.
export function fill(slider) {
  const share = (slider.value - slider.min) / (slider.max - slider.min || 1);
  slider.style.setProperty("--share", String(share));
}

function choice(of, id, onChange) {
  const options = of.choices.map((value) => el("option", { value: String(value) }, String(value)));
  if (of.default === null) options.unshift(el("option", { value: "" }, "any"));
  const input = el("select", { id, on: { change: onChange } }, ...options);
  const get = () => of.choices.find((value) => String(value) === input.value);
  return { element: input, input, get, set: (value) => (input.value = value === null ? "" : String(value)) };
}

function flag(of, id, onChange) {
  const input = el("input", { id, type: "checkbox", on: { change: onChange } });
  return { element: input, input, get: () => input.checked, set: (value) => (input.checked = Boolean(value)) };
}

function text(of, id, onChange) {
  const input = el("textarea", { id, rows: 2, on: { input: onChange } });
  const get = () => (input.value === "" ? undefined : input.value);
  return { element: input, input, get, set: (value) => (input.value = value ?? "") };
}

// Where a slider begins and ends. A field may go on for longer than a slider is any use for; its box takes the rest.
function spanOf(of) {
  if (of.default === null && (of.minimum === null || of.maximum === null)) return null;
  const size = Math.max(Math.abs(of.default ?? 0), 1);
  const low = of.minimum ?? Math.min(0, 4 * (of.default ?? 0));
  if (of.maximum === null) return [low, 4 * size];
  return [low, of.default !== null && of.maximum > 10 * size ? 4 * size : of.maximum];
}

function fineness(span) {
  return 10 ** Math.floor(Math.log10(span / 50));
}
