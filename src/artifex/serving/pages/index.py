"""Pages for people: the models with commands to try, and the operations of the API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape

import numpy as np

from artifex import __version__
from artifex.generative_models.core.specs import TensorSpec
from artifex.serving.pages.commands import curl_commands, tritonclient_snippet
from artifex.serving.pages.openapi import openapi
from artifex.serving.plane.dataplane import DataPlane
from artifex.serving.plane.loaded_model import ServedEndpoint
from artifex.serving.plane.repository import Entry
from artifex.serving.plane.tensors import datatype_of, field_datatype

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --link: light-dark(#0550ae, #79b8ff); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem 1.25rem 4rem; }
h1 { margin: .5rem 0; } h2 { margin: 2.5rem 0 .5rem; } h3 { margin: 2rem 0 .25rem; } p { margin: .4rem 0; }
a { color: var(--link); } nav a { margin-right: 1.25rem; }
code, pre { font: .875em/1.5 ui-monospace, monospace; }
pre { background: var(--soft); border: 1px solid var(--line); border-radius: 6px; padding: .6rem .8rem;
  margin: .15rem 0 .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
pre code { user-select: all; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1rem; font-size: .9375em; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0;
  border-bottom: 1px solid var(--line); overflow-wrap: break-word; }
th { font-weight: 600; opacity: .7; }
@media (max-width: 45rem) { td:not(:first-child) { overflow-wrap: anywhere; } }
details { border: 1px solid var(--line); border-radius: 6px; margin: .4rem 0; padding: .4rem .8rem; }
summary { cursor: pointer; }
.state { font-size: .75rem; font-weight: 600; padding: .15rem .5rem; border-radius: 1rem; color: #fff;
  background: #9a6700; vertical-align: middle; }
.READY { background: #1a7f37; } .UNAVAILABLE { background: #b42318; }
.label { opacity: .75; font-size: .9375em; }
"""


def index_page(plane: DataPlane, base_url: str) -> str:
    """The models, with commands to try.

    Args:
        base_url: Where the server is, without a slash at the end; not to be trusted.
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
    body = [
        "<h1>Artifex</h1>",
        f"<p>Generative models behind the Open Inference Protocol V2, version {escape(__version__)}.</p>",
        _links({text: f"{base_url}/{path}" for text, path in links.items()}),
        draining,
        "<p>If the server has an API key, commands need it too: "
        "<code>-H 'Authorization: Bearer KEY'</code>.</p>",
        *(_model(entry, plane, base_url) for entry in entries),
    ]
    waits = any(entry.state == "LOADING" or entry.reason == "not loaded yet" for entry in entries)
    return _page("Artifex", body, reload=waits)


def docs_page(plane: DataPlane, base_url: str) -> str:
    """The operations that the OpenAPI document has, without those that this server only refuses."""
    rows = [
        [method.upper(), path, operation["summary"]]
        for path, operations in openapi(plane)["paths"].items()
        for method, operation in operations.items()
        if "200" in operation["responses"]
    ]
    body = [
        "<h1>Artifex API</h1>",
        "<p>The OpenAPI document says what each operation takes and gives; any OpenAPI viewer shows it.</p>",
        _links({"Models": f"{base_url}/", "OpenAPI": f"{base_url}/openapi.json"}),
        _table(["Method", "Path", ""], rows),
    ]
    return _page("Artifex API", body)


def _model(entry: Entry, plane: DataPlane, base_url: str) -> str:
    state = "LOADING" if entry.reason == "not loaded yet" else entry.state
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
    outputs = [_tensor(key, spec) for key, spec in endpoint.outputs.items()]
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


def _page(title: str, body: Iterable[str], *, reload: bool = False) -> str:
    again = "<meta http-equiv='refresh' content='2'>" if reload else ""  # seconds
    head = "<meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
    return (
        f"<!doctype html><html lang='en'><head>{head}{again}<title>{escape(title)}</title>"
        f"<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>"
    )
