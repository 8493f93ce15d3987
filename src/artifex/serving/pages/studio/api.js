// What the server is asked. Addresses are relative to this module, so that a path in front of the server holds.

export const BASE = new URL("..", import.meta.url);
const KEY = `artifex-key:${BASE.pathname}`;

// What went wrong, in the server's words; status 0 is that it cannot be reached.
export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }

  get needsKey() {
    return this.status === 401;
  }
}

export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

export function setKey(key) {
  if (key === null) sessionStorage.removeItem(KEY);
  else sessionStorage.setItem(KEY, key);
}

// The models with their controls.
export async function askModels() {
  return (await ask("studio/models.json")).json();
}

// The part of the page that lists the models with commands.
export async function askCommands() {
  const html = await (await ask("")).text();
  return new DOMParser().parseFromString(html, "text/html").getElementById("models");
}

// Runs an endpoint: its outputs by name.
export async function generate(name, body, signal) {
  return (await post(name, "generate", body, signal)).json();
}

// Runs an endpoint: its rows, and previews of them, as they come.
export async function* stream(name, body, signal) {
  const response = await post(name, "generate_stream", body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await read(reader);
      if (done) break;
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        const content = JSON.parse(event.replace(/^data: /, ""));
        if ("error" in content) throw new ServerError(content.error, 500);
        yield content;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server ended the answer before it was whole.", 0);
  }
}

function post(name, what, body, signal) {
  const headers = { "content-type": "application/json" };
  const path = `v2/models/${encodeURIComponent(name)}/${what}`;
  return ask(path, { method: "POST", headers, body: JSON.stringify(body), signal });
}

async function ask(path, { headers = {}, ...options } = {}) {
  const key = sessionStorage.getItem(KEY);
  if (key !== null) headers = { ...headers, authorization: `Bearer ${latin(key)}` };
  let response;
  try {
    response = await fetch(new URL(path, BASE), { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server cannot be reached.", 0);
  }
  if (response.ok) return response;
  let message = `The server answered ${response.status} ${response.statusText}.`;
  try {
    message = (await response.json()).error ?? message;
  } catch {
    // of something that stands before the server, and has other words
  }
  throw new ServerError(message, response.status);
}

// The bytes of a key as a header holds them.
function latin(key) {
  return String.fromCharCode(...new TextEncoder().encode(key));
}
