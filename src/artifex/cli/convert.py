"""`artifex convert`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from artifex.cli.options import AsJson, ComputeDtype, DirectoryFormat, Model, Variant

_NETWORKS = {"unet": "UNet2DModel", "dit": "DiTTransformer2DModel"}  # and their classes in diffusers
_CARRIED_OVER = ("training_steps", "final_loss", "compute_dtype")  # of what is known of a model


def convert(
    source: Model,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Where to write.", show_default=False)],
    directory_format: Annotated[
        DirectoryFormat, typer.Option("--format", help="Whose directory OUT is to be.")
    ] = DirectoryFormat.artifex,
    dtype: Annotated[ComputeDtype | None, typer.Option(help="Dtype of the weights in OUT.")] = None,
    variant: Variant = None,
    family: Annotated[
        str | None, typer.Option(help="Of a .safetensors file: unet, dit, or an installed family.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Of a .safetensors file: the family's arguments, as JSON.")
    ] = None,
    scheduler: Annotated[
        Path | None, typer.Option(help="Of a unet or dit: its scheduler_config.json, to draw samples by.")
    ] = None,
    key_map: Annotated[
        Path | None, typer.Option("--map", help="Of a .safetensors file: what its names become, as JSON.")
    ] = None,
    image_range: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="LOW HIGH", help="Range of pixel values; -1 1 of a unet or dit, else 0 1."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a model in another format: of Artifex, or of diffusers."""
    from artifex.generative_models.inference.formats.diffusers_export import export_diffusers

    if Path(source).suffix == ".safetensors" or source.endswith(".safetensors.index.json"):
        _refuse(source, {"--variant": variant})
        model, metadata = _from_file(Path(source), family, config, scheduler, key_map)
    else:
        settings = {"--family": family, "--config": config, "--scheduler": scheduler, "--map": key_map}
        _refuse(source, settings)
        model, metadata = _from_directory(source, variant)
    if image_range is not None:
        metadata["image_range"] = image_range
    if directory_format is DirectoryFormat.diffusers:
        path = export_diffusers(model, output, dtype=dtype)
    else:
        path = _export(model, output, metadata, dtype)
    facts = {"output": str(path), "format": directory_format.value, "dtype": dtype}
    typer.echo(json.dumps(facts) if as_json else f"{source} converted to {path}")


def _from_directory(source: str, variant: str | None) -> tuple[Any, dict[str, Any]]:
    """A model as it is stored, and what is known of it."""
    from artifex.generative_models.inference.formats.loading import load_exported_model

    model, _, metadata = load_exported_model(source, variant=variant)
    return model, metadata


def _from_file(
    source: Path, family: str | None, config: Path | None, scheduler: Path | None, key_map: Path | None
) -> tuple[Any, dict[str, Any]]:
    """A model of weights that have names of their own."""
    from artifex.generative_models.core.config import model_types, read_json
    from artifex.generative_models.core.errors import InputError
    from artifex.generative_models.inference.formats.diffusers import family_of
    from artifex.generative_models.inference.formats.key_map import load_file, read_map

    if family is None or config is None:
        known = ", ".join(sorted({*_NETWORKS, *model_types()}))
        raise InputError(f"{source}: --family and --config say what its weights belong to; families: {known}")
    arguments, image_range = read_json(config), (0.0, 1.0)
    if family in _NETWORKS:
        family, arguments = family_of(config, {**arguments, "_class_name": _NETWORKS[family]})
        arguments["scheduler"] = None if scheduler is None else read_json(scheduler)
        image_range = (-1.0, 1.0)
    else:
        _refuse(f"--family {family}", {"--scheduler": scheduler})
    names = {} if key_map is None else read_map(key_map)
    return load_file(source, family, arguments, names), {"image_range": image_range}


def _export(model: Any, output: Path, metadata: Mapping[str, Any], dtype: ComputeDtype | None) -> Path:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from artifex.generative_models.core.casting import cast
    from artifex.generative_models.inference.formats.exporting import export_model

    def stored(leaf: Any) -> Any:
        return cast(leaf, dtype.value) if dtype and jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    facts = {name: metadata[name] for name in _CARRIED_OVER if metadata.get(name) is not None}
    if dtype is not None:
        facts.setdefault("compute_dtype", "float32")  # whatever it is stored in
        graphdef, state = nnx.split(model)
        model = nnx.merge(graphdef, jax.tree.map(stored, state))
    step, image_range = metadata.get("step", 0), metadata.get("image_range")
    return export_model(model, output, step=step, image_range=image_range, **facts)


def _refuse(what: str, settings: Mapping[str, Any]) -> None:
    from artifex.generative_models.core.errors import InputError

    if given := [name for name, value in settings.items() if value is not None]:
        raise InputError(f"{what}: {', '.join(given)} is not taken")
