"""Models that take steps, beside samplers that are written by hand around the same network.

The baselines are what people write: one `jax.jit` of a `lax.scan` over the steps, and a Python loop over a
jitted step. Both have their coefficients ready and a label for all pictures, draw the noise of a batch at
once, and give what Artifex gives but for that noise. All sides start from labels on the host and end with
pictures there. What previews, guidance and chunks cost is measured on the same model, and the whole command
beside importing JAX.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from common import Row, in_turns, ratio, report
from flax import nnx

from artifex.generative_models.core.sampling import table as columns
from artifex.generative_models.inference import Executor, batch_generate_samples, load_exported_model
from artifex.generative_models.inference.offline.sampling import sampling
from artifex.generative_models.models.denoiser import Denoiser

MODELS = ("mnist-diffusion", "mnist-flow")
ROUNDS_OF = {16: 41, 64: 15}  # rounds, by rows; many, since two runs of the same differ by a tenth
STEPS = 20
COMMAND_ROUNDS = 7
PYTHON, ARTIFEX = sys.executable, str(Path(sys.executable).with_name("artifex"))
IMPORT = [PYTHON, "-c", "import jax; jax.numpy.zeros(1).block_until_ready()"]

Call = Callable[[], object]


class ByHand:
    """A sampler of a model's network with the coefficients that the model's own sampler has.

    Args:
        model: The model.
        table: The coefficients, float32 [steps, columns].
        num_rows: Rows of a batch.
        dtype: Of the network; None is what it has.
    """

    def __init__(self, model: Denoiser, table: np.ndarray, num_rows: int, dtype: str | None = None):
        graphdef, params = nnx.split(model)
        self.params = jax.tree.map(lambda leaf: leaf.astype(dtype or leaf.dtype), params)
        shape = (num_rows, *model.endpoints()["generate"].fn.shape)
        update = table[:, columns.STEP]
        # of: what the network is given, x and o in the estimate; then x, the estimates and o in the step
        wanted = [table[:, [columns.TIME, columns.INPUT, columns.X_TO_M, columns.O_TO_M]], update]
        self.coefficients = jnp.asarray(np.concatenate(wanted, axis=1))
        assert not update[:, [1, 4, 6]].any(), "a sampler that needs more than two estimates"
        self.bound = float(table[0, columns.BOUND])

        def one(params, x, m, c, label):
            net = nnx.merge(graphdef, params).network
            given = (c[1] * x).astype(dtype or x.dtype)
            o = net(given, jnp.full(num_rows, c[0]), label).astype(x.dtype)
            estimate = jnp.clip(c[2] * x + c[3] * o, -self.bound, self.bound)
            return c[4] * x + c[6] * estimate + c[7] * m + c[9] * o, estimate

        def noise(key):
            return jax.random.normal(key, shape)

        @jax.jit
        def whole(params, key, label, coefficients):
            def body(carried, c):
                return one(params, *carried, c, label), None

            x = noise(key)
            return jax.lax.scan(body, (x, jnp.zeros_like(x)), coefficients)[0][0]

        self.whole, self.noise = whole, jax.jit(noise)
        self.one = jax.jit(one, donate_argnums=(1, 2))

    def scanned(self, label: np.ndarray) -> np.ndarray:
        """One program."""
        return np.asarray(self.whole(self.params, jax.random.key(0), label, self.coefficients))

    def looped(self, label: np.ndarray) -> np.ndarray:
        """A call a step."""
        x, m = self.noise(jax.random.key(0)), jnp.zeros(self.noise(jax.random.key(0)).shape)
        label = jnp.asarray(label)
        for c in self.coefficients:
            x, m = self.one(self.params, x, m, c, label)
        return np.asarray(x)


def iterated(executor: Executor, label: np.ndarray, every: int) -> np.ndarray:
    """The pictures, and a look at them every so many steps."""
    how = sampling(executor, len(label), 1.0, said(label))
    rows, key = how.rows(0, len(label)), nnx.Rngs(0).sample()
    looks = executor.iterate("generate", rows, every=every, key=key, num_rows=len(label), **how.options)
    return list(looks)[-1].outputs["x"]


def said(label: np.ndarray, guidance_scale: float = 1.0) -> dict[str, object]:
    return {"label": label, "num_steps": STEPS, "guidance_scale": guidance_scale}


def drawn(executor: Executor, label: np.ndarray, guidance_scale: float = 1.0) -> np.ndarray:
    given = said(label, guidance_scale)
    return np.asarray(batch_generate_samples(executor, len(label), rngs=0, **given))


def measured(
    model: Denoiser, num_rows: int, rounds: int, dtype: str | None = None
) -> dict[str, dict[str, float]]:
    """Every side in turns: median seconds, and what each is over another."""
    executor = Executor(model, tuned=False, dtype=dtype)
    label = (np.arange(num_rows) % 10).astype(np.int32)
    table = sampling(executor, 1, 1.0, said(label[:1])).rows(0, 1)["table"][0, :STEPS]
    by_hand = ByHand(model, table, num_rows, dtype)
    calls: dict[str, Call] = {
        "jit(lax.scan)": partial(by_hand.scanned, label),
        "loop over jit": partial(by_hand.looped, label),
        "Artifex": partial(drawn, executor, label),
        "guidance": partial(drawn, executor, label, 2.0),
        "chunks of 10": partial(iterated, executor, label, 10),
        "previews every 5": partial(iterated, executor, label, 5),
    }
    pictures = {label: np.asarray(call()) for label, call in calls.items()}
    for same in ("chunks of 10", "previews every 5"):
        np.testing.assert_array_equal(pictures[same], pictures["Artifex"])
    near = np.abs(pictures["jit(lax.scan)"] - pictures["loop over jit"]).max()
    assert near < (0.01 if dtype is None else 0.5), "the baselines differ"
    others = ("jit(lax.scan)", "loop over jit", "Artifex")
    beside = in_turns({name: calls[name] for name in others}, max(rounds // 3, 3))
    times = in_turns({name: call for name, call in calls.items() if name not in others[:2]}, rounds)
    over = {
        "Artifex / jit(lax.scan)": 1 / ratio(beside, "jit(lax.scan)", "Artifex"),
        "Artifex / loop over jit": 1 / ratio(beside, "loop over jit", "Artifex"),
        "guidance / none": 1 / ratio(times, "Artifex", "guidance"),
        "chunks of 10 / run": 1 / ratio(times, "Artifex", "chunks of 10"),
        "previews every 5 / run": 1 / ratio(times, "Artifex", "previews every 5"),
    }
    return {
        "seconds": {label: round(statistics.median(values), 6) for label, values in (beside | times).items()},
        "over": {label: round(value, 4) for label, value in over.items()},
    }


def command(words: list[str], cache: str) -> float:
    """Seconds of a process."""
    start = time.perf_counter()
    subprocess.run(
        words,
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=cache,
        env={**os.environ, "ARTIFEX_CACHE_DIR": cache},
    )
    return time.perf_counter() - start


def commands(name: str) -> Iterator[tuple[str, float]]:
    """The warm command in turns with importing JAX, beside that and the sampling that it does."""
    model = load_exported_model(name)[0]
    executor = Executor(model, tuned=False)
    draw = partial(batch_generate_samples, executor, 16, rngs=0)
    np.asarray(draw())
    draws = [statistics.median(in_turns({"draw": lambda: np.asarray(draw())}, 5)["draw"])]
    with tempfile.TemporaryDirectory() as cache:
        generate = [ARTIFEX, "generate", name, "-n", "16", "-o", "samples.png"]
        command(generate, cache)
        times = [(command(IMPORT, cache), command(generate, cache)) for _ in range(COMMAND_ROUNDS)]
    yield "importing JAX", statistics.median(first for first, _ in times)
    yield "sampling", draws[0]
    yield "artifex generate", statistics.median(second for _, second in times)
    yield "over both", statistics.median(second / (first + draws[0]) for first, second in times)


def main() -> None:
    rows: list[Row] = []
    facts: dict[str, dict[str, dict[str, float]]] = {}
    for name in MODELS:
        model = load_exported_model(name)[0]
        for num_rows, rounds in ROUNDS_OF.items():
            what = f"{name}, {num_rows} rows"
            facts[what] = found = measured(model, num_rows, rounds)
            taken = f"{1e3 * found['seconds']['Artifex']:.1f} ms"
            rows.append([what, taken, *(f"{value:.3f}" for value in found["over"].values())])
    head = [f"{STEPS} steps", "Artifex", *next(iter(facts.values()))["over"]]
    report("families", head, rows, facts)
    found = {name: dict(commands(name)) for name in MODELS}
    table: list[Row] = [
        [f"generate {name} -n 16", *(f"{value:.2f}" for value in of.values())] for name, of in found.items()
    ]
    report("families: commands", ["warm", *found[MODELS[0]]], table, found)


if __name__ == "__main__":
    main()
