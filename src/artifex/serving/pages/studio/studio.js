// The studio: which model, what to do with it, and what the server says meanwhile.

import { activities } from "./activities.js";
import { askCommands, askModels, hasKey, setKey } from "./api.js";
import { el, newId } from "./dom.js";
import { Gallery } from "./gallery.js";
import { keyForm } from "./key.js";

const AGAIN = 1000; // milliseconds until the server is asked again, while that may help

const root = document.getElementById("studio");
const notice = el("p", { className: "notice", role: "status", "aria-live": "polite", hidden: true });
const choice = el("select", { id: newId("model") });
const version = el("span", { className: "version" });
const bar = el("nav", { className: "tabs", "aria-label": "What to do" });
const place = el("div", { className: "place" });
const gallery = new Gallery(reuse);
const studio = el(
  "div",
  { className: "studio" },
  el("div", { className: "row models" }, el("label", { htmlFor: choice.id }, "Model"), choice, version),
  bar,
  place,
  gallery.element,
);

let catalog = null; // what the server told last
let shown = ""; // of the model that is open
let current = null; // its panel
let timer = 0;

async function refresh() {
  clearTimeout(timer);
  let told;
  try {
    told = await askModels();
  } catch (error) {
    if (error.needsKey) {
      lock();
    } else {
      say(error.status === 0 ? "The server cannot be reached. Asking again …" : error.message);
      timer = setTimeout(refresh, AGAIN);
    }
    return;
  }
  const before = JSON.stringify(catalog);
  catalog = told;
  if (!studio.isConnected) root.replaceChildren(notice, studio);
  if (before !== JSON.stringify(told)) {
    if (before !== "null" || hasKey() || document.querySelector("#models .LOADING")) showCommands();
    showModels();
  }
  const isLoading = told.models.some((model) => model.state === "LOADING");
  if (told.draining) say("The server is about to end, and takes no more requests.");
  else if (isLoading) say(waiting(told));
  else say("");
  if (isLoading || told.draining) timer = setTimeout(refresh, AGAIN);
}

// Asks for the key, in place of the studio, and forgets what a key had shown.
function lock() {
  const wasWrong = hasKey();
  setKey(null);
  catalog = null;
  shown = "";
  document.getElementById("models").replaceChildren();
  const form = keyForm(wasWrong, refresh);
  root.replaceChildren(form.element);
  form.focus();
}

function say(words) {
  if (!notice.isConnected) root.prepend(notice);
  if (notice.textContent !== words) notice.textContent = words;
  notice.hidden = words === "";
}

function waiting({ models }) {
  const names = models.filter((model) => model.state === "LOADING").map((model) => model.name);
  return `${names.join(", ")} ${names.length === 1 ? "is" : "are"} being loaded …`;
}

async function showCommands() {
  try {
    document.getElementById("models").replaceChildren(...(await askCommands()).childNodes);
  } catch {
    // it is below the studio, which works without
  }
}

function showModels() {
  const [wanted, activity] = fromAddress();
  const chosen = choice.value || wanted;
  const names = catalog.models.map((model) => model.name);
  choice.replaceChildren(...catalog.models.map((model) => {
    const state = model.state === "READY" ? "" : ` (${model.state.toLowerCase()})`;
    return el("option", { value: model.name }, model.name + state);
  }));
  const ready = catalog.models.find((model) => model.state === "READY") ?? catalog.models[0];
  choice.value = names.includes(chosen) ? chosen : ready.name;
  showModel(activity);
}

function showModel(activity) {
  const model = catalog.models.find((one) => one.name === choice.value);
  if (JSON.stringify(model) === shown) return;
  shown = JSON.stringify(model);
  version.textContent = model.version && `version ${model.version}`;
  const found = activities(model, gallery);
  bar.replaceChildren(...found.map((one) => {
    const open = { click: () => openActivity(model, one) };
    return el("button", { type: "button", on: open, "data-activity": one.id }, one.title);
  }));
  bar.hidden = found.length < 2;
  const opened = found.find((one) => one.id === activity) ?? found[0];
  if (opened) {
    openActivity(model, opened);
    return;
  }
  close();
  const reason = model.reason ? `${model.reason}.` : "it has no endpoint that takes or gives pictures or texts.";
  const words = model.state === "LOADING" ? `${model.name} is being loaded …` : `${model.name}: ${reason}`;
  place.replaceChildren(el("p", { className: "empty" }, words));
}

function openActivity(model, activity) {
  close();
  for (const button of bar.children) {
    button.setAttribute("aria-current", String(button.dataset.activity === activity.id));
  }
  current = activity.open();
  place.replaceChildren(current.element);
  history.replaceState(null, "", `#${model.name}/${activity.id}`);
}

function close() {
  current?.runner.cancel();
  current = null;
}

function reuse(item) {
  const model = catalog.models.find((one) => one.name === item.model);
  const endpoint = model?.endpoints.find((one) => one.name === item.endpoint);
  if (!endpoint) {
    say(`${item.endpoint} is not served any more.`);
    return;
  }
  choice.value = model.name;
  shown = "";
  showModel(endpoint.endpoint);
  current.set(item.request);
  current.element.scrollIntoView({ block: "start" });
  current.runner.button.focus({ preventScroll: true });
}

function fromAddress() {
  const [model, activity] = location.hash.slice(1).split("/");
  return [model, activity]; // names of models have no characters that addresses change
}

choice.addEventListener("change", () => showModel());
window.addEventListener("artifex-changed", refresh);
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    current?.runner.start();
  } else if (event.key === "Escape" && current?.runner.isBusy) {
    current.runner.cancel();
  }
});
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file) current?.paste(file);
});
if ("locked" in root.dataset && !hasKey()) lock();
else refresh();
