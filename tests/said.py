"""Calls of endpoints by what callers say, as every door makes them."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from artifex.generative_models.core.fields import checked_fields
from artifex.generative_models.inference import Executor


def call(
    executor: Executor, name: str, inputs: Mapping[str, Any], *, key: jax.Array | None = None, **said: Any
) -> dict[str, np.ndarray]:
    """What an endpoint gives for inputs of so many rows as the first has, and for fields."""
    given, options = rows_of(executor, name, inputs, **said)
    keyed = {"key": key} if executor.draws(name, **options) else {}
    return {key: np.asarray(rows) for key, rows in executor(name, given, **keyed, **options).items()}


def rows_of(
    executor: Executor, name: str, inputs: Mapping[str, Any], **said: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The inputs and the options of the executable."""
    says = executor.endpoints[name].says
    if says is None:
        return dict(inputs), said
    fields = {field: said.pop(field) for field in list(said) if field in says.fields}
    num_rows = len(next(iter(inputs.values())))
    checked = checked_fields(name, says.fields, fields, num_rows)
    options = says.options(checked)
    return {**inputs, **says.rows(checked, num_rows, options)}, {**options, **said}
