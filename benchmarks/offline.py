"""20,000 pictures in host memory: Artifex beside the best hand-written jit loop and an eager loop.

The hand-written loop is as good as one thread can make it: weights are arguments, every batch size and
both ways to bring the results home are tried, compilation is not counted, and its best is the baseline.
A second loop gets the XLA options that the executor uses on the CPU, to show what they are worth alone.
The eager loop calls the model without jit at its default batch size of 32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from common import digits, in_turns, ratio, report, seconds
from flax import nnx

from artifex.generative_models.inference import (
    batch_encode_images,
    batch_generate_samples,
    load_exported_model,
)
from artifex.generative_models.inference.executor.program import cpu_options

ROWS = 20_000
BATCH_SIZES = (8, 16, 32, 64, 128, 256)
ROUNDS = 9


def bounds(batch_size: int) -> list[tuple[int, int]]:
    return [(i, min(i + batch_size, ROWS)) for i in range(0, ROWS, batch_size)]


def to_numpy(outputs) -> np.ndarray:
    return np.concatenate([np.asarray(output) for output in outputs])


def copied_at_once(outputs) -> np.ndarray:
    return np.concatenate(jax.device_get(list(outputs)))


HOMES = {"batch by batch": to_numpy, "at the end": copied_at_once}


def jit_loops(run):
    """`run(start, stop)` dispatches a batch; one loop for each batch size and way home."""
    return {
        f"batch {size}, {home}": lambda size=size, bring=bring: bring(run(a, b) for a, b in bounds(size))
        for size in BATCH_SIZES
        for home, bring in HOMES.items()
    }


def fastest(loops):
    """The label of the fastest loop, and the seconds of each."""
    for loop in loops.values():
        loop()  # compiles
    trial = {label: min(seconds(loop) for _ in range(2)) for label, loop in loops.items()}
    return min(trial, key=trial.get), trial


def compare(title, loops, tuned_loops, eager, ours):
    for call in ours.values():
        call()  # compiles
    best, trial = fastest(loops)
    tuned, _ = fastest(tuned_loops)
    with_options = f"jit loop with our XLA options, {tuned}"
    eager()
    calls = {"eager loop": eager, "jit loop": loops[best], with_options: tuned_loops[tuned], **ours}
    times = in_turns(calls, ROUNDS)
    rates = {label: ROWS / np.median(values) for label, values in times.items()}
    over_eager = ratio(times, "eager loop", "Artifex")
    over_jit = {label: ratio(times, "jit loop", label) for label in ours}
    rows = [
        [f"{title}: eager loop, batch 32", f"{rates['eager loop']:,.0f}", "", ""],
        [f"{title}: jit loop, {best}", f"{rates['jit loop']:,.0f}", "1.00", ""],
        [
            f"{title}: {with_options}",
            f"{rates[with_options]:,.0f}",
            f"{ratio(times, 'jit loop', with_options):.2f}",
            "",
        ],
    ]
    for label in ours:
        beside = f"{over_eager:.2f}" if label == "Artifex" else ""
        rows.append([f"{title}: {label}", f"{rates[label]:,.0f}", f"{over_jit[label]:.2f}", beside])
    facts = {
        "rows_per_second": {label: round(rate) for label, rate in rates.items()},
        "best_jit_loop": best,
        "jit_loops_rows_per_second": {label: round(ROWS / value) for label, value in trial.items()},
        "over_jit_loop": round(over_jit["Artifex"], 3),
        "over_eager_loop": round(over_eager, 3),
    }
    return rows, facts


def main() -> None:
    model, _, _ = load_exported_model("mnist-vae")
    graphdef, params = nnx.split(model)
    images = digits(ROWS)
    options = cpu_options() if jax.default_backend() == "cpu" else None

    def encode(params, x):
        return nnx.merge(graphdef, params).encode(x)["mean"]

    plain_encode, tuned_encode = jax.jit(encode), jax.jit(encode, compiler_options=options)
    encode_rows, encode_facts = compare(
        "encode",
        jit_loops(lambda a, b: plain_encode(params, images[a:b])),
        jit_loops(lambda a, b: tuned_encode(params, images[a:b])),
        lambda: jnp.concatenate([model.encode(images[a:b])["mean"] for a, b in bounds(32)]),
        {
            "Artifex": lambda: batch_encode_images(model, images),
            "Artifex, batch 64": lambda: batch_encode_images(model, images, 64),
        },
    )

    def draw(params, key, count):
        return nnx.merge(graphdef, params).decode(jax.random.normal(key, (count, model.latent_dim)))

    plain_draw = jax.jit(draw, static_argnums=2)
    tuned_draw = jax.jit(draw, static_argnums=2, compiler_options=options)
    keys = list(jax.random.split(jax.random.key(0), ROWS // min(BATCH_SIZES)))
    sample = nnx.Rngs(0).sample
    generate_rows, generate_facts = compare(
        "generate",
        jit_loops(lambda a, b: plain_draw(params, keys[a // (b - a)], b - a)),
        jit_loops(lambda a, b: tuned_draw(params, keys[a // (b - a)], b - a)),
        lambda: jnp.concatenate(
            [model.decode(jax.random.normal(sample(), (b - a, model.latent_dim))) for a, b in bounds(32)]
        ),
        {
            "Artifex": lambda: batch_generate_samples(model, ROWS, rngs=nnx.Rngs(0)),
            "Artifex, batch 64": lambda: batch_generate_samples(model, ROWS, 64, rngs=nnx.Rngs(0)),
        },
    )
    columns = ["20,000 rows from host memory to host memory", "rows/s", "over jit loop", "over eager loop"]
    report(
        "offline",
        columns,
        [*encode_rows, *generate_rows],
        {"encode": encode_facts, "generate": generate_facts},
    )


if __name__ == "__main__":
    main()
