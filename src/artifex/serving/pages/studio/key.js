// Asks for the server's key, where it has one.

import { setKey } from "./api.js";
import { el, newId } from "./dom.js";

// A form; `onKey` is called when a key has been given. It is kept for as long as the tab is open.
export function keyForm(wasWrong, onKey) {
  const id = newId("key");
  const input = el("input", { id, type: "password", autocomplete: "off", required: true });
  const message = el("p", { className: "error", role: "alert" }, wasWrong ? "That is not the server's key." : "");
  const submit = (event) => {
    event.preventDefault();
    setKey(input.value.trim());
    onKey();
  };
  const form = el(
    "form",
    { className: "card key", on: { submit } },
    el("h2", {}, "This server has a key"),
    el("p", {}, "Whoever runs it can tell you. It is kept until you close this tab."),
    el("label", { htmlFor: id }, "Key"),
    el("div", { className: "row" }, input, el("button", { type: "submit", className: "primary" }, "Open")),
    message,
  );
  return { element: form, focus: () => input.focus() };
}
