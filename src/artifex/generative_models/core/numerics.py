"""JAX's settings that decide what a traced program computes, such as the noise that a key gives."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax

_VALUES = ("enable_x64", "default_prng_impl", "threefry_partitionable", "default_matmul_precision")
_BITS = (  # of the last digits, or of what a model's own code draws
    "high_dynamic_range_gumbel",
    "random_seed_offset",
    "disable_most_optimizations",
    "allow_f16_reductions",
)
_REFUSALS = ("numpy_dtype_promotion", "numpy_rank_promotion")  # what is traced is the same, or not at all

_OTHER_FLAGS = ("--xla_dump", "--xla_force_host_platform_device_count")  # which change no numbers


def numerics() -> dict[str, Any]:
    """The settings as they are in this thread, by JAX's names."""
    return {name: getattr(jax.config, f"jax_{name}") for name in _VALUES + _REFUSALS}


def value_settings() -> dict[str, str]:
    """Those of them that change numbers, in words."""
    told = {name: str(getattr(jax.config, f"jax_{name}")) for name in _VALUES}
    told |= {name: str(jax.config.values.get(f"jax_{name}")) for name in _BITS}
    flags = os.environ.get("XLA_FLAGS", "").split()
    return told | {"xla_flags": " ".join(sorted(flag for flag in flags if not flag.startswith(_OTHER_FLAGS)))}


@contextlib.contextmanager
def using(settings: Mapping[str, Any]) -> Iterator[None]:
    """Traces in the block with what `numerics` gave before."""
    with contextlib.ExitStack() as stack:
        for name, value in settings.items():
            if getattr(jax.config, f"jax_{name}") != value:
                stack.enter_context(getattr(jax, name)(value))
        yield
