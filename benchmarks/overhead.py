"""Latency of one row: the executor beside the bare compiled executable and beside `nnx.jit`.

Each is called back to back, and with a pause of 50 µs between calls, which is not counted. XLA's threads
spin for about 3 µs after an execution before they sleep; only a caller that does nothing at all between
two calls of the bare executable ever meets them awake, and waking them costs 15 to 20 µs.
"""

from __future__ import annotations

import statistics
from functools import partial

import jax.numpy as jnp
import numpy as np
from baselines import bare_executable, microseconds
from common import digits, report
from flax import nnx

from artifex.generative_models.inference import Executor, load_exported_model

CALLS = 200
ROUNDS = 15
PAUSES = {"back to back": 0.0, "50 µs apart": 50e-6}


def main() -> None:
    model, _, _ = load_exported_model("mnist-vae")
    executor = Executor(model)
    rows, facts = [], {}
    inputs = {
        "encode": ("x", jnp.asarray(digits(1)), lambda model, x: model.encode(x)),
        "decode": (
            "z",
            jnp.asarray(np.ones((1, model.latent_dim), np.float32)),
            lambda model, z: model.decode(z),
        ),
    }
    for endpoint, (name, x, method) in inputs.items():
        executable = bare_executable(model, method, x)
        jitted = nnx.jit(method)
        calls = {
            "bare executable": partial(executable, x),
            "Executor": partial(executor, endpoint, {name: x}),
            "nnx.jit": partial(jitted, model, x),
        }
        for label, pause in PAUSES.items():
            rounds = [
                {n: microseconds(call, CALLS, pause) for n, call in calls.items()} for _ in range(ROUNDS + 1)
            ]
            median = {n: statistics.median(r[n] for r in rounds[1:]) for n in calls}
            over_bare = statistics.median(r["Executor"] / r["bare executable"] for r in rounds[1:])
            under_nnx = statistics.median(r["nnx.jit"] / r["Executor"] for r in rounds[1:])
            latencies = [f"{median[n]:.0f} µs" for n in calls]
            rows.append([f"{endpoint}, {label}", *latencies, f"{over_bare:.2f}", f"{under_nnx:.1f}"])
            facts[f"{endpoint}, {label}"] = {
                "microseconds": {n: round(value, 1) for n, value in median.items()},
                "executor_over_bare": round(over_bare, 3),
                "nnx_jit_over_executor": round(under_nnx, 2),
            }
    columns = ["one row", "bare executable", "Executor", "nnx.jit", "Executor / bare", "nnx.jit / Executor"]
    report("overhead", columns, rows, facts)


if __name__ == "__main__":
    main()
