"""How close a computation comes to what the machine can do.

References:
    Williams, Waterman and Patterson, *Roofline: An Insightful Visual Performance Model for Multicore
    Architectures*, 2009. https://doi.org/10.1145/1498765.1498785
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from artifex.generative_models.core.devices import DeviceManager
from artifex.generative_models.core.errors import InputError
from artifex.generative_models.inference.executor.cost import Cost

if TYPE_CHECKING:
    from jaxtyping import Array

_ROUNDS = 8


@dataclass(frozen=True)
class Ceilings:
    """What one device does at most, measured.

    Args:
        matmul_flops_per_second: Floating-point operations a second of a large float32 matrix product, at
            JAX's default precision.
        copy_bytes_per_second: Bytes read and written a second by a pass over an array that no cache holds.
    """

    matmul_flops_per_second: float
    copy_bytes_per_second: float

    def highest(self, other: Ceilings) -> Ceilings:
        """The higher of each of two measurements: something else on the machine only ever lowers them."""
        return Ceilings(
            max(self.matmul_flops_per_second, other.matmul_flops_per_second),
            max(self.copy_bytes_per_second, other.copy_bytes_per_second),
        )


@dataclass(frozen=True)
class Roofline:
    """Where a computation stands below the ceilings.

    Args:
        attainable_seconds: The least time that the ceilings allow.
        share_of_roofline: That time over the time taken, from 0. Above 1 where caches serve bytes that the
            compiler counts as memory's.
        share_of_matmul: Operations a second over those of a matrix product, from 0.
    """

    attainable_seconds: float
    share_of_roofline: float
    share_of_matmul: float


def machine_ceilings() -> Ceilings:
    """Measures the default device: the best of several matrix products and of several copies.

    Takes about a second, and 256 MiB of memory on the CPU, 1 GiB elsewhere.
    """
    on_cpu = DeviceManager().default_device.platform == "cpu"
    side, num_bytes, calls = (2048, 1 << 28, 1) if on_cpu else (8192, 1 << 30, 10)
    # Compiled here and not by the executor, which brings rows from the host and makes new arrays for the
    # outputs: on a CPU the faults of fresh pages alone made a copy eight times slower.
    multiply = jax.jit(jnp.matmul)
    negate = jax.jit(jnp.negative, donate_argnums=0)
    weights = jnp.full((side, side), 1 / side, jnp.float32)
    matmul = _best_seconds(lambda x: multiply(x, weights), weights, calls)
    copy = _best_seconds(negate, jnp.ones(num_bytes // 4, jnp.float32), calls)
    return Ceilings(2 * side**3 / matmul, 2 * num_bytes / copy)


def roofline(cost: Cost, seconds: float, ceilings: Ceilings) -> Roofline:
    r"""Compares the time of one execution with the least that the ceilings allow.

    $$t_{\min} = \max(\text{flops} / \text{peak},\; \text{bytes} / \text{bandwidth})$$
    which is the same as a rate of $\min(\text{peak}, \text{intensity} \cdot \text{bandwidth})$, where the
    intensity is flops / bytes.

    Args:
        cost: Of one execution.
        seconds: That it took, above 0.
        ceilings: Of the device.

    Raises:
        InputError: `seconds` is not above 0.

    References:
        Williams, Waterman and Patterson 2009, section 3. https://doi.org/10.1145/1498765.1498785
    """
    if not seconds > 0:
        raise InputError(f"seconds: expected the time of one execution, above 0; got {seconds!r}")
    computing = cost.flops / ceilings.matmul_flops_per_second
    attainable = max(computing, cost.bytes_accessed / ceilings.copy_bytes_per_second)
    return Roofline(attainable, attainable / seconds, computing / seconds)


def _best_seconds(step: Callable[[Array], Array], x: Array, calls: int) -> float:
    """Seconds of one step in the fastest of several rounds; each step takes what the last one gave."""
    x = jax.block_until_ready(step(x))
    fastest = float("inf")
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        for _ in range(calls):
            x = step(x)
        jax.block_until_ready(x)
        fastest = min(fastest, (time.perf_counter() - start) / calls)
    return fastest
