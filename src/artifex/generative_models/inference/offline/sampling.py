"""What samples are drawn with: the inputs and options of a model's `generate`, besides the noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from artifex.generative_models.core.errors import InputError
from artifex.generative_models.core.fields import Finishing, Said, checked_fields
from artifex.generative_models.core.specs import TensorSpec
from artifex.generative_models.inference.executor.executor import Executor


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn.

    Args:
        rows: The inputs of samples from one number to another, arrays [samples, ...].
        options: Static options.
    """

    rows: Callable[[int, int], dict[str, np.ndarray]]
    options: Mapping[str, Any]


def sampling(
    executor: Executor, num_samples: int | None, temperature: float, given: Mapping[str, Any]
) -> Sampling:
    """Checks how samples are to be drawn; a family without a temperature takes 1 and nothing else.

    Args:
        executor: Of a model with a `generate` endpoint.
        num_samples: How many; None where there is no end, so that what is given is for all.
        temperature: Standard deviation of the prior's noise, of all samples.
        given: More inputs of the endpoint, for all samples or one a sample, and options; the temperature too,
            where it is not said already.

    Raises:
        InputError: It gives text; no samples; a temperature that is negative, not finite, not taken, or given
            twice; a name that is not taken; an input of another shape, or of which there are not as many as
            samples.
    """
    if num_samples is not None and num_samples < 1:
        raise InputError(f"num_samples: expected at least 1, got {num_samples}")
    if not 0 <= temperature < float("inf"):
        raise InputError(f"temperature: expected a finite number from 0, got {temperature}")
    if "generate" not in executor.endpoints:
        raise InputError(f"no endpoint 'generate'; there are {', '.join(executor.endpoints)}")
    endpoint = executor.endpoints["generate"]
    if "temperature" in given and temperature != 1:
        raise InputError("temperature: it is given twice")
    if "temperature" in endpoint.fields:
        given = {"temperature": temperature, **given}
    elif temperature != 1:
        raise InputError(f"temperature: this model takes none, got {temperature}")
    if isinstance(endpoint.says, Finishing):
        raise InputError(
            f"generate: expected a model of pictures, and it gives {', '.join(endpoint.says.texts)}; "
            "use pipeline.call"
        )
    unknown = given.keys() - {*endpoint.fields}
    if unknown:
        takes = ", ".join(endpoint.fields) or "nothing"
        raise InputError(f"generate: {', '.join(sorted(unknown))} is not taken; it takes {takes}")
    specs = endpoint.given
    inputs = {
        name: _checked(name, spec, given[name], num_samples) for name, spec in specs.items() if name in given
    }
    options = {name: given[name] for name in endpoint.given_options if name in given}
    said = None
    if endpoint.says is not None:
        fields = endpoint.says.fields
        named = {name: value for name, value in given.items() if name in fields}
        said = Said(endpoint.says, checked_fields("generate", fields, named, num_samples))
        options |= said.options

    def rows(start: int, stop: int) -> dict[str, np.ndarray]:
        plain = {
            name: value[start:stop]
            if value.ndim > len(specs[name].shape)
            else np.ascontiguousarray(np.broadcast_to(value, (stop - start, *specs[name].shape)))
            for name, value in inputs.items()
        }
        return plain if said is None else {**plain, **said.rows(start, stop)}

    return Sampling(rows, options)


def _checked(name: str, spec: TensorSpec, value: Any, num_samples: int | None) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError as error:  # of lists of several lengths
        raise InputError(f"generate: {name}: expected numbers, or lists of one length") from error
    if array.dtype.kind in "iu" and jnp.issubdtype(spec.dtype, jnp.floating):
        with np.errstate(over="ignore"):  # which the executor tells
            array = array.astype(spec.dtype)
    shapes = [spec.shape] if num_samples is None else [spec.shape, (num_samples, *spec.shape)]
    if array.shape not in shapes:
        wanted = " or ".join(map(str, map(list, shapes)))
        raise InputError(f"generate: {name}: expected shape {wanted}, got {list(array.shape)}")
    return array
