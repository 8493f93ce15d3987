"""What the studio shows of each model: its endpoints, with a control for everything that a caller gives."""

from __future__ import annotations

from typing import Any

import numpy as np

from artifex.generative_models.core.fields import Field
from artifex.generative_models.core.specs import Option, TensorSpec
from artifex.generative_models.inference.images import is_picture
from artifex.serving.plane.dataplane import DataPlane
from artifex.serving.plane.loaded_model import ServedEndpoint
from artifex.serving.plane.repository import Entry
from artifex.serving.plane.seeds import MAX_SEED

Json = dict[str, Any]

_KINDS: dict[type, str] = {int: "integer", float: "number", str: "choice", bool: "flag"}
_DTYPES = {"b": "flag", "i": "integer", "u": "integer"}
# Of a control: `default` null is that nothing holds where nobody says anything, `shape` is that of a row, and
# `is_needed` that requests cannot leave it out.
_SAYS_NOTHING: Json = {
    "default": None,
    "minimum": None,
    "maximum": None,
    "choices": None,
    "multiple": None,
    "doc": "",
    "shape": [],
    "is_needed": False,
}
_SEED: Json = {
    **_SAYS_NOTHING,
    "name": "seed",
    "kind": "seed",
    "minimum": 0,
    "maximum": MAX_SEED,
    "doc": "What repeats the draw.",
}


def studio_models(plane: DataPlane) -> Json:
    """The models, in the order of the server, with their endpoints where they are loaded."""
    return {
        "draining": plane.draining,
        "max_rows": plane.max_rows,
        "models": [_model(entry, plane) for entry in plane.repository.entries.values()],
    }


def shown_state(entry: Entry) -> str:
    """The state of a model for people, to whom one that waits for its turn is loading."""
    return "LOADING" if entry.reason == "not loaded yet" else entry.state


def _model(entry: Entry, plane: DataPlane) -> Json:
    loaded = entry.loaded
    endpoints = {} if loaded is None else loaded.endpoints
    return {
        "name": entry.name,
        "state": shown_state(entry),
        "reason": entry.reason,
        "version": "" if loaded is None else loaded.version,
        "endpoints": [
            _endpoint(entry.name if name == "generate" else f"{entry.name}.{name}", endpoint, plane.max_rows)
            for name, endpoint in sorted(endpoints.items(), key=lambda named: named[0] != "generate")
            if f"{entry.name}.{name}" not in plane.repository.entries  # to which requests by that name go
        ],
    }


def _endpoint(served: str, endpoint: ServedEndpoint, max_rows: int) -> Json:
    controls = [_of_input(name, spec) for name, spec in endpoint.inputs.items()]
    controls += [
        {**_of_said(name, field.kind, field), "is_needed": field.example is not None}
        for name, field in endpoint.fields.items()
    ]
    controls += [
        {**_of_said(name, type(option.default), option), "multiple": option.multiple}
        for name, option in endpoint.options.items()
        if type(option.default) in _KINDS  # others have no form in JSON
    ]
    if endpoint.draws:
        controls.append(_SEED)
    return {
        "name": served,
        "endpoint": endpoint.name,
        "doc": endpoint.doc,
        "draws": endpoint.draws,
        "takes_steps": endpoint.takes_steps,
        "max_rows": max_rows,
        "controls": controls,
        "texts": [*endpoint.texts],
        "outputs": [
            {"name": name, "shape": [*spec.shape], "is_picture": is_picture(spec)}
            for name, spec in endpoint.outputs.items()
        ],
    }


def _of_input(name: str, spec: TensorSpec) -> Json:
    kind = _DTYPES.get(np.dtype(spec.dtype).kind, "number")
    if spec.shape:
        kind = "picture" if is_picture(spec) else "vector"
    facts = {"default": spec.default, "shape": [*spec.shape], "is_needed": spec.default is None}
    return {**_SAYS_NOTHING, "name": name, "kind": kind, "doc": spec.doc, **facts}


def _of_said(name: str, kind: type, said: Field | Option) -> Json:
    """A control for a field, or for an option whose default is of a kind."""
    shown = "text" if kind is str and said.choices is None else _KINDS[kind]
    facts: Json = {"default": said.default, "minimum": said.minimum, "maximum": said.maximum}
    if said.choices is not None:
        shown, facts["choices"] = "choice", [*said.choices]
    return {**_SAYS_NOTHING, "name": name, "kind": shown, "doc": said.doc, **facts}
