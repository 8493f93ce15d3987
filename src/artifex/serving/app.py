"""`create_app`: models as an ASGI application."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from artifex.generative_models.core.directories import name_of
from artifex.generative_models.core.endpoint import Model
from artifex.generative_models.core.errors import InputError
from artifex.generative_models.inference.executor.executor import Executor
from artifex.generative_models.inference.pipeline import InferencePipeline
from artifex.serving.http.asgi import App
from artifex.serving.plane.dataplane import DataPlane
from artifex.serving.plane.origins import ExportSource, PipelineSource, Source
from artifex.serving.plane.repository import Repository

Servable = str | PathLike[str] | InferencePipeline | Executor | Model


def create_app(
    models: Sequence[str | PathLike[str]] | Mapping[str, Servable],
    *,
    batch_size: int | None = None,
    dtype: str | None = None,
    api_key: str | None = None,
    max_body_bytes: int = 32 << 20,
    max_rows: int = 4096,
    max_queued_rows: int = 1 << 15,
    timeout: float | None = 60.0,
    deterministic: bool = False,
    body_timeout: float = 30.0,
    cors_origins: Sequence[str] = (),
    access_log: bool = False,
    watch_seconds: float | None = None,
) -> App:
    """Models behind the Open Inference Protocol, as an ASGI application: to run, or to mount in another.

    Each endpoint of a model is a model of the protocol, such as `mnist-vae.encode`; the model's own name is
    its `generate`.

    Args:
        models: Bundled models and export directories, which go by their last names; or, by the names to
            give them, those, pipelines, executors and models.
        batch_size: The largest batch of models from disk; None is what `tune` found, or 64.
        dtype: Dtype in which models from disk compute.
        api_key: Where there is one, requests must bring it: `Authorization: Bearer KEY`. Health is exempt, as
            is the page at `/`, which asks for the key and tells nothing before.
        max_body_bytes: Size of a request's body, compressed or not.
        max_rows: Rows of one request.
        max_queued_rows: Rows that may wait, for each model; more are refused with status 429.
        timeout: Seconds that a request may wait unless it says otherwise; None is for ever.
        deterministic: Whether everything runs in batches of one size, so that the bits of a sample depend on
            its seed alone and not on the load; `docs/serving.md` says what that costs.
        body_timeout: Seconds for a request's body to arrive.
        cors_origins: Web origins whose scripts may call.
        access_log: Whether to log each request.
        watch_seconds: Time between looks for new checkpoints and exports; None never looks.

    Raises:
        InputError: No model, two of one name, a name that cannot be one, or a limit below 1.
    """
    limits = {"max_body_bytes": max_body_bytes, "max_rows": max_rows, "max_queued_rows": max_queued_rows}
    for name, limit in limits.items():
        if limit < 1:
            raise InputError(f"{name}: expected at least 1, got {limit}")
    if isinstance(models, Mapping):
        named: dict[str, Servable] = dict(models)
    else:
        named = {name_of(model): model for model in models}
        if len(named) < len(models):
            raise InputError("two models have the same name; give them other ones")
    if not named:
        raise InputError("expected at least one model")
    sources = {name: _source(model, batch_size, dtype) for name, model in named.items()}
    repository = Repository(sources, max_queued_rows=max_queued_rows, deterministic=deterministic)
    return App(
        DataPlane(repository, max_rows=max_rows, timeout=timeout),
        api_key=api_key,
        max_body_bytes=max_body_bytes,
        body_timeout=body_timeout,
        cors_origins=cors_origins,
        access_log=access_log,
        watch_seconds=watch_seconds,
    )


def _source(model: Servable, batch_size: int | None, dtype: str | None) -> Source:
    if isinstance(model, str | PathLike):
        return ExportSource(Path(model), batch_size, dtype)
    if isinstance(model, InferencePipeline):
        return PipelineSource(model)
    return PipelineSource(InferencePipeline(model))
