"""What an execution costs by the compiler's own account, known before anything runs."""

from __future__ import annotations

from dataclasses import dataclass

import jax


@dataclass(frozen=True)
class Cost:
    """One execution of an endpoint at one batch size, on one device.

    Args:
        flops: Floating-point operations, padding and whatever else the compiler put in included.
        bytes_accessed: Bytes that its steps read and write; what stays in caches counts as well.
        memory_bytes: Device memory that it holds at once: weights, inputs, outputs and temporaries.
        weight_bytes: Of these, the weights, which all executions share.
    """

    flops: float
    bytes_accessed: float
    memory_bytes: int
    weight_bytes: int = 0


def cost_of(executable: jax.stages.Compiled, weight_bytes: int) -> Cost:
    """Asks a compiled executable for its cost, given the bytes of those arguments that are weights."""
    analysis = executable.cost_analysis() or {}
    memory = executable.memory_analysis()
    held = (
        0
        if memory is None
        else memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )
    return Cost(analysis.get("flops", 0.0), analysis.get("bytes accessed", 0.0), held, weight_bytes)
