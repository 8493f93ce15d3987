"""What tuning found out about an endpoint on one kind of device, and where it is kept."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp

from artifex.generative_models.core.convolutions import ConvShape, forms_for
from artifex.generative_models.core.endpoint import Endpoint, names_of
from artifex.generative_models.inference import cache

Forms = tuple[tuple[ConvShape, int], ...]

_log = logging.getLogger("artifex")


@dataclass(frozen=True)
class Setting:
    """How an endpoint is compiled at one batch size.

    Args:
        fusion: Whether XLA's CPU backend hands chains of products and elementwise work to its library; None
            leaves that to the executor's rule.
        convolutions: The forms of the layers of some shapes, as for `forms_of_convolutions`.
    """

    fusion: bool | None = None
    convolutions: Forms = ()


@dataclass(frozen=True)
class Tuned:
    """How an endpoint runs best.

    Args:
        batch_size: Rows a batch of the highest throughput.
        executions_in_flight: Batches to have under way at once, the one that is copied included.
        settings: How to compile the batch sizes that were tried; others are left to the executor's rule.
    """

    batch_size: int
    executions_in_flight: int
    settings: Mapping[int, Setting] = field(default_factory=dict)


def sizes_to_compile(wanted: Sequence[int] | None, tuned: Tuned | None, num_shards: int) -> tuple[int, ...]:
    """An endpoint's batch sizes, ascending: those asked for, or powers of two up to the tuned one or 64.

    Args:
        wanted: Row counts, if any are asked for.
        tuned: What tuning found out, if anything.
        num_shards: What each is a multiple of.
    """
    if wanted is None:
        wanted = powers_up_to(64 if tuned is None else tuned.batch_size)
    return tuple(sorted({-(-size // num_shards) * num_shards for size in wanted}))


def powers_up_to(batch_size: int) -> tuple[int, ...]:
    """The powers of two below a batch size, and the batch size."""
    powers = itertools.takewhile(lambda size: size < batch_size, (2**n for n in itertools.count()))
    return (*powers, batch_size)


def tuning_name(
    endpoint: Endpoint,
    weights: Sequence[Any],
    *,
    dtype: Any,
    devices: Sequence[jax.Device],
    cores: int,
) -> str:
    """Name of the cache entry for an endpoint: it depends on all that decides how fast it runs.

    That is the function's name, its inputs and options, the shapes and dtypes of the weights, not their
    values, the dtype of the computation, the kind and number of devices, and the version of jaxlib.
    """
    described = [
        *names_of(endpoint.fn),
        [(name, spec.shape, str(spec.dtype)) for name, spec in sorted(endpoint.inputs.items())],
        sorted((name, repr(value)) for name, value in endpoint.defaults.items()),
        [(leaf.shape, str(leaf.dtype)) for leaf in weights],
        None if dtype is None else str(jnp.dtype(dtype)),
        [devices[0].platform, devices[0].device_kind, len(devices), cores],
        version("jaxlib"),
    ]
    digest = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    return f"tuning/{digest}.json"


def load_tuned(name: str) -> Tuned | None:
    """Reads a tuning result; one that is missing, damaged or does not fit is as good as none.

    Args:
        name: What `tuning_name` gives.
    """
    data = cache.try_read(name)
    if data is None:
        return None
    try:
        return _checked(json.loads(data))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        _log.warning("ignored a damaged tuning result, tune again: %s", error)
        return None


def save_tuned(name: str, tuned: Tuned) -> None:
    """Keeps a tuning result.

    Args:
        name: What `tuning_name` gives.
        tuned: The result.

    Raises:
        CacheError: The cache directory cannot be used.
    """
    cache.write(name, json.dumps(asdict(tuned)).encode())


def _checked(facts: Mapping[str, Any]) -> Tuned:
    settings = {int(size): _setting(setting) for size, setting in facts["settings"].items()}
    tuned = Tuned(facts["batch_size"], facts["executions_in_flight"], settings)
    counts = [tuned.batch_size, tuned.executions_in_flight, *settings]
    if not all(type(count) is int and 1 <= count < 2**31 for count in counts):
        raise ValueError(f"expected positive integers, got {counts}")
    for size, setting in settings.items():
        known = all(form in forms_for(shape) for shape, form in setting.convolutions)
        if not isinstance(setting.fusion, bool | None) or not known:
            raise ValueError(f"batch size {size} cannot be compiled with {setting}")
    return tuned


def _setting(facts: Mapping[str, Any]) -> Setting:
    forms = tuple((ConvShape(*shape), form) for shape, form in facts.get("convolutions", ()))
    return Setting(**{**facts, "convolutions": forms})
