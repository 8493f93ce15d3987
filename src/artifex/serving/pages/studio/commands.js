// What was drawn as commands for a terminal: they draw it again.

import { BASE, hasKey } from "./api.js";

function address(item) {
  return new URL(`v2/models/${encodeURIComponent(item.endpoint)}/generate`, BASE).href;
}

function file(item) {
  return `${item.endpoint}-${item.request.seed ?? "drawn"}.png`;
}

// One for a shell. The key, where there is one, is left to the environment.
export function curl(item) {
  const parts = ["curl", "-s", quoted(address(item)), "-H", quoted("Accept: image/png")];
  if (hasKey()) parts.push("-H", '"Authorization: Bearer $ARTIFEX_API_KEY"');
  parts.push("-d", quoted(JSON.stringify(item.request)), "-o", quoted(file(item)));
  return parts.join(" ");
}

// One for Python, of what it has by itself.
export function python(item) {
  const headers = ['"Accept": "image/png"', '"Content-Type": "application/json"'];
  if (hasKey()) headers.push('"Authorization": f"Bearer {os.environ[\'ARTIFEX_API_KEY\']}"');
  const fields = Object.entries(item.request).map(([name, value]) => `${JSON.stringify(name)}: ${literal(value)}`);
  return [
    "import json",
    ...(hasKey() ? ["import os"] : []),
    "import urllib.request",
    "",
    `body = {${fields.join(", ")}}`,
    `headers = {${headers.join(", ")}}`,
    `request = urllib.request.Request(${JSON.stringify(address(item))}, json.dumps(body).encode(), headers)`,
    "with urllib.request.urlopen(request) as answer:",
    `    picture = answer.read()`,
    `with open(${JSON.stringify(file(item))}, "wb") as file:`,
    "    file.write(picture)",
    "",
  ].join("\n");
}

function quoted(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`;
}

function literal(value) {
  return typeof value === "boolean" ? (value ? "True" : "False") : JSON.stringify(value);
}
