"""Pages for people: the models with commands to try, and the operations of the API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape

import numpy as np

from artifex import __version__
from artifex.generative_models.core.specs import TensorSpec
from artifex.serving.pages.commands import curl_commands, tritonclient_snippet
from artifex.serving.pages.controls import shown_state
from artifex.serving.pages.openapi import openapi
from artifex.serving.plane.dataplane import DataPlane
from artifex.serving.plane.loaded_model import ServedEndpoint
from artifex.serving.plane.repository import Entry
from artifex.serving.plane.tensors import datatype_of, field_datatype


def index_page(plane: DataPlane, base_url: str, root: str = "") -> str:
    """The studio, and below it the models with commands to try.

    Args:
        base_url: Where the server is, without a slash at the end; not to be trusted.
        root: The path of that, which is all that the page's own files are asked for by: a proxy in front may
            speak another scheme.
    """
    entries = plane.repository.entries.values()
    links = {
        "API": "docs",
        "OpenAPI": "openapi.json",
        "Metrics": "metrics",
        "Live": "v2/health/live",
        "Ready": "v2/health/ready",
    }
    draining = "<p>The server is about to end and takes no more requests.</p>" if plane.draining else ""
    commands = [
        "<h2 class='part'>Models and commands</h2>",
        f"<p>Generative models behind the Open Inference Protocol V2, version {escape(__version__)}.</p>",
        draining,
        "<p>If the server has an API key, commands need it too: "
        "<code>-H 'Authorization: Bearer KEY'</code>.</p>",
        *(_model(entry, plane, base_url) for entry in entries),
    ]
    waits = any(shown_state(entry) == "LOADING" for entry in entries)
    nav = _links({text: f"{base_url}/{path}" for text, path in links.items()})
    return _studio_page(root, nav, "".join(commands), reload=waits)


def locked_page(root: str = "") -> str:
    """The page for who has not given the key: the studio, which asks for it, and no word of the models.

    Args:
        root: As for `index_page`.
    """
    return _studio_page(root, "", "", is_locked=True)


def docs_page(plane: DataPlane, base_url: str, root: str = "") -> str:
    """The operations that the OpenAPI document has, without those that this server only refuses.

    Args:
        base_url: As for `index_page`.
        root: As there.
    """
    rows = [
        [method.upper(), path, operation["summary"]]
        for path, operations in openapi(plane)["paths"].items()
        for method, operation in operations.items()
        if "200" in operation["responses"]
    ]
    body = [
        _header(root, _links({"Models": f"{base_url}/", "OpenAPI": f"{base_url}/openapi.json"})),
        "<main class='text'><h1>API</h1>",
        "<p>The OpenAPI document says what each operation takes and gives; any OpenAPI viewer shows it.</p>",
        _table(["Method", "Path", ""], rows),
        "</main>",
    ]
    return _page("Artifex API", root, body)


def _studio_page(root: str, nav: str, commands: str, *, reload: bool = False, is_locked: bool = False) -> str:
    path = escape(f"{root}/studio")
    locked = " data-locked" if is_locked else ""
    body = [
        _header(root, nav),
        f"<main><h1 class='unseen'>Artifex</h1><div id='studio'{locked}></div>",
        "<noscript><p class='text'>The studio needs JavaScript; commands do not.</p></noscript>",
        f"<section id='models' class='text'>{commands}</section></main>",
    ]
    head = f"<link rel='stylesheet' href='{path}/studio.css'>"
    head += f"<script type='module' src='{path}/studio.js'></script>"
    if reload:  # by itself, where no script looks for news
        head += "<noscript><meta http-equiv='refresh' content='2'></noscript>"  # seconds
    return _page("Artifex", root, body, head)


def _header(root: str, nav: str) -> str:
    return f"<header class='top'><a class='name' href='{escape(root)}/'>Artifex</a>{nav}</header>"


def _model(entry: Entry, plane: DataPlane, base_url: str) -> str:
    state = shown_state(entry)
    parts = [
        f"<h2>{escape(entry.name)} <span class='state {escape(state)}'>{escape(state)}</span></h2>",
        f"<p>{escape(entry.reason)}</p>" if entry.reason else "",
    ]
    if entry.loaded is None:
        return "".join(parts)
    parts.append(f"<p>Version {escape(entry.loaded.version)}.</p>")
    endpoints = entry.loaded.endpoints
    for name in sorted(endpoints, key=lambda name: name != "generate"):  # its pictures are for the others
        served = entry.name if name == "generate" else f"{entry.name}.{name}"
        parts.append(_endpoint(served, endpoints[name], plane, base_url))
    return "".join(parts)


def _endpoint(name: str, endpoint: ServedEndpoint, plane: DataPlane, base_url: str) -> str:
    inputs = [_tensor(key, spec) for key, spec in endpoint.inputs.items()]
    for key, field in endpoint.fields.items():
        default = "" if field.default is None else str(field.default)
        about = "; ".join(filter(None, [field.limits, field.doc]))
        inputs.append([key, field_datatype(field), "[rows] or [1]", default, about])
    if endpoint.draws:
        inputs.append(["seed", "INT64", "[rows]", "random", "one for each row, or one for all"])
    options = [
        [key, "", "", str(option.default), "; ".join(["option", *option.words])]
        for key, option in endpoint.options.items()
    ]
    outputs = [[key, "BYTES", "[rows]", "", ""] for key in endpoint.texts]
    outputs += [_tensor(key, spec) for key, spec in endpoint.outputs.items()]
    parts = [
        f"<h3><code>{escape(name)}</code></h3><p>{escape(endpoint.doc)}</p>",
        _table(["Input", "Datatype", "Shape", "Default", ""], [*inputs, *options]),
        _table(["Output", "Datatype", "Shape", "", ""], outputs),
    ]
    for about, command in curl_commands(base_url, name, endpoint, plane.max_rows):
        parts.append(f"<p class='label'>{escape(about)}</p>{_code(command, 'curl')}")
    snippet = tritonclient_snippet(base_url, name, endpoint)
    parts.append(f"<details><summary>From Python</summary>{_code(snippet, 'python')}</details>")
    return "".join(parts)


def _tensor(name: str, spec: TensorSpec) -> list[str]:
    shape = ", ".join(map(str, ("rows", *spec.shape)))
    default = "" if spec.default is None else str(spec.default)
    return [name, datatype_of(np.dtype(spec.dtype)), f"[{shape}]", default, spec.doc]


def _links(links: Mapping[str, str]) -> str:
    anchors = (f"<a href='{escape(url)}'>{escape(text)}</a>" for text, url in links.items())
    return f"<nav>{''.join(anchors)}</nav>"


def _code(text: str, kind: str) -> str:
    return f"<pre><code class='{kind}'>{escape(text)}</code></pre>"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    lines = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _page(title: str, root: str, body: Iterable[str], head: str = "") -> str:
    path = escape(f"{root}/studio")
    head = (
        "<meta charset='utf-8'><meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><link rel='icon' href='{path}/icon.svg'>"
        f"<link rel='stylesheet' href='{path}/page.css'>{head}"
    )
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(body)}</body></html>"
