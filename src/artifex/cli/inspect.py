"""`artifex inspect`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from artifex.cli.options import AsJson, Model

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from rich.table import Table

    from artifex.generative_models.core.fields import Field
    from artifex.generative_models.core.specs import TensorSpec
    from artifex.generative_models.inference.executor.executor import Executor
    from artifex.generative_models.inference.pipeline import InferencePipeline


def inspect(model: Model, as_json: AsJson = False) -> None:
    """Show what a model or a directory is: endpoints, parts, size, training; and the devices there are."""
    from artifex.cli.factories import is_factory
    from artifex.cli.run import load_model
    from artifex.generative_models.inference.formats.loading import find_model, foreign_parts

    directory = None if is_factory(model) else find_model(model).absolute()
    files = () if directory is None else (file for file in directory.rglob("*") if file.is_file())
    parts = None if directory is None else foreign_parts(directory)
    facts: dict[str, Any] = {
        "model": model,
        "directory": None if directory is None else str(directory),
        "bytes_on_disk": sum(file.stat().st_size for file in files),
        "parts": parts,
    }
    if parts is None or parts["is_run"]:
        facts |= _of_pipeline(load_model(model))
    facts["devices"] = _devices()
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        _show(facts)


def _of_pipeline(pipeline: InferencePipeline) -> dict[str, Any]:
    return {
        "model_type": pipeline.metadata.get("model_type"),
        "parameters": pipeline.executor.num_parameters,
        "config": pipeline.config,
        "training": {name: value for name, value in pipeline.metadata.items() if name != "model_type"},
        "endpoints": {name: _endpoint(pipeline.executor, name) for name in pipeline.executor.endpoints},
    }


def _endpoint(executor: Executor, name: str) -> dict[str, Any]:
    endpoint = executor.endpoints[name]
    inputs, outputs = executor.spec(name)
    fields = {} if endpoint.says is None else endpoint.says.fields
    return {
        "doc": endpoint.doc,
        "fields": {name: _field(field) for name, field in fields.items()},
        "inputs": _tensors({name: inputs[name] for name in endpoint.given}),
        "outputs": _tensors(outputs),
        "options": {name: option.default for name, option in endpoint.given_options.items()},
    }


def _field(field: Field) -> dict[str, Any]:
    return {
        "type": field.kind.__name__,
        "default": field.default,
        "needed": field.example is not None,
        "minimum": field.minimum,
        "above": field.above,
        "maximum": field.maximum,
        "choices": field.choices,
        "limits": field.limits,
        "doc": field.doc,
    }


def _tensors(specs: Mapping[str, TensorSpec]) -> dict[str, dict[str, Any]]:
    return {
        name: {"shape": spec.shape, "dtype": str(spec.dtype), "default": spec.default, "doc": spec.doc}
        for name, spec in specs.items()
    }


def _devices() -> list[dict[str, Any]]:
    from artifex.generative_models.core.devices import DeviceManager

    return [
        {
            "id": memory.device.id,
            "platform": memory.device.platform,
            "kind": memory.device.device_kind,
            "bytes_in_use": memory.bytes_in_use,
            "bytes_limit": memory.bytes_limit,
        }
        for memory in DeviceManager().memory()
    ]


def _show(facts: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    console.print(facts["model"], style="bold", end=": ", soft_wrap=True)
    size = "" if facts["directory"] is None else f", {_size(facts['bytes_on_disk'])} on disk"
    kind, parts = facts.get("model_type") or "a model", facts["parts"] or {}
    if parts:
        kind = f"{parts['class']} of diffusers, " + (kind if parts["is_run"] else "which is not run here")
    parameters = f", {facts['parameters']:,} parameters" if "parameters" in facts else ""
    console.print(f"{kind}{parameters}{size}")
    if facts["directory"] is not None:
        console.print(facts["directory"], style="dim", soft_wrap=True)
    tables = [
        _table(("Part", ""), [*parts.get("runs", {}).items(), *parts.get("does_not_run", {}).items()]),
        _table(("Endpoint", "Takes", "Gives"), _endpoint_rows(facts.get("endpoints", {}))),
        _table(("Field", "Type", "Default", ""), _field_rows(facts.get("endpoints", {}))),
        _table(("Config", ""), _fact_rows(facts.get("config", {}))),
        _table(("Metadata", ""), _fact_rows(facts.get("training", {}))),
        _table(("Device", "Kind", "Memory"), map(_device_row, facts["devices"])),
    ]
    for table in tables:
        if table.rows:
            console.print()
            console.print(table)


def _table(columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _endpoint_rows(endpoints: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, endpoint in endpoints.items():
        options = [f"{option} = {value} (option)" for option, value in endpoint["options"].items()]
        taken = [*endpoint["fields"], *_lines(endpoint["inputs"]), *options]
        yield name, "\n".join(taken), "\n".join(_lines(endpoint["outputs"]))


def _field_rows(endpoints: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """The fields; one that endpoints have alike is told once, with their names if it differs."""
    alike: dict[str, list[tuple[dict[str, Any], list[str]]]] = {}
    for name, endpoint in endpoints.items():
        for field, facts in endpoint["fields"].items():
            kinds = alike.setdefault(field, [])
            names = next((names for known, names in kinds if known == facts), None)
            if names is None:
                kinds.append((facts, names := []))
            names.append(name)
    for field, kinds in alike.items():
        for facts, names in kinds:
            default = "" if facts["default"] is None else f"{facts['default']}"
            default = "needed" if facts["needed"] else default
            about = "; ".join(filter(None, [facts["limits"], facts["doc"]]))
            of = "" if len(kinds) == 1 else f" ({', '.join(names)})"
            yield f"{field}{of}", facts["type"], default, about


def _lines(tensors: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, tensor in tensors.items():
        axes = ", ".join(map(str, ("batch", *tensor["shape"])))
        default = "" if tensor["default"] is None else f" = {tensor['default']:g}"
        yield f"{name} {tensor['dtype']}[{axes}]{default}"


def _fact_rows(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, ...]]:
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from _fact_rows(value, f"{prefix}{name} / ")
        else:
            yield prefix + name, value if isinstance(value, str) else json.dumps(value)


def _device_row(device: Mapping[str, Any]) -> tuple[str, ...]:
    limit, used = device["bytes_limit"], device["bytes_in_use"]
    memory = "not reported" if limit is None else f"{_size(used)} of {_size(limit)} in use"
    return f"{device['platform']}:{device['id']}", device["kind"], memory


def _size(num_bytes: int) -> str:
    size, units = float(num_bytes), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while size >= 1000 and unit != "TB":
        size, unit = size / 1000, next(units)
    return f"{size:.3g} {unit}"
