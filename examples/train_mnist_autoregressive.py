"""Trains the bundled `mnist-autoregressive` on MNIST and exports it.

    python examples/train_mnist_autoregressive.py --data DIR --output src/artifex/zoo/mnist-autoregressive

DIR holds the canonical IDX files, gzipped; `--download` fetches the missing ones. Two cores need about
11 minutes.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from memory import keep_freed_memory
from mnist import LABELS, PICTURES, TEST_LABELS, TEST_PICTURES, facts, read_idx

from artifex.generative_models.core.nn import position_sinusoids
from artifex.generative_models.inference import Executor, export_model
from artifex.generative_models.models.autoregressive import Autoregressive

ARGUMENTS = {
    "levels": 4,  # of grey, which look almost like all 256
    "patch_size": 2,
    "features": 64,
    "num_layers": 4,
    "num_heads": 4,
    "num_labels": 10,
}
STEPS = 2000
RATE = 3e-3
WAVES = 0.03  # size of the positions' vectors at the start, which know rows and columns
AVERAGING = 0.995  # of the weights, a step
LOOK = 100  # steps between two reports
TESTED = 1000  # pictures of the test set whose probability is computed


def train(
    pictures: np.ndarray, labels: np.ndarray, steps: int, batch_size: int, seed: int
) -> tuple[Autoregressive, float]:
    """Trains on pictures in [0, 1]; returns the averaged weights, in bfloat16, and the last loss."""
    model = Autoregressive(pictures.shape[1:], **ARGUMENTS, rngs=nnx.Rngs(seed))
    places = position_sinusoids(
        *[side // model.patch_size for side in model.input_shape[:2]], ARGUMENTS["features"]
    )
    model.network.positions.embedding[...] = WAVES * places.reshape(-1, ARGUMENTS["features"])
    graphdef, params = nnx.split(model)
    print(f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters", flush=True)
    schedule = optax.warmup_cosine_decay_schedule(0.0, RATE, max(1, min(200, steps // 10)), steps)
    is_matrix = jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.05, mask=is_matrix)
    )
    dimensions = math.prod(pictures.shape[1:]) * math.log(2)

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def train_step(params, averaged, opt_state, x, label, step):
        def loss_of(params):
            return -nnx.merge(graphdef, params).log_prob(x, label).mean() / dimensions

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        decay = jnp.minimum(AVERAGING, (1 + step) / (10 + step))
        averaged = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, averaged, params)
        return params, averaged, opt_state, loss

    num_devices = math.gcd(batch_size, jax.device_count())
    mesh = Mesh(jax.devices()[:num_devices], "rows")
    of_rows, on_all = NamedSharding(mesh, PartitionSpec("rows")), NamedSharding(mesh, PartitionSpec())
    state = jax.device_put((params, jax.tree.map(jnp.copy, params), optimizer.init(params)), on_all)
    rng = np.random.default_rng(seed)
    order = np.concatenate(
        [rng.permutation(len(pictures)) for _ in range(-(-steps * batch_size // len(pictures)))]
    )
    begun, losses = time.monotonic(), []
    for step in range(steps):
        rows = order[step * batch_size : (step + 1) * batch_size]
        batch = jax.device_put((pictures[rows], labels[rows]), of_rows)
        *state, loss = train_step(*state, *batch, step)
        losses.append(loss)
        if (step + 1) % LOOK == 0:
            mean, minutes = np.mean(jax.device_get(losses[-LOOK:])), (time.monotonic() - begun) / 60
            print(f"step {step + 1:6d}  loss {mean:.4f}  {minutes:5.1f} minutes", flush=True)
    stored = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), jax.device_get(state[1]))
    return nnx.merge(graphdef, stored), float(np.mean(jax.device_get(losses[-LOOK:])))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--download", action="store_true")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    def read(pictures: str, labels: str) -> tuple[np.ndarray, np.ndarray]:
        x = read_idx(args.data, pictures, download=args.download)[..., None].astype(np.float32) / 255
        return x, read_idx(args.data, labels, download=args.download).astype(np.int32)

    model, loss = train(*read(PICTURES, LABELS), args.steps, args.batch_size, args.seed)
    x, label = (part[:TESTED] for part in read(TEST_PICTURES, TEST_LABELS))
    tested = Executor(model, dtype=jnp.float32)("log_prob", {"x": x, "label": label})
    bits = float(np.mean(tested["bits_per_dim"]))
    print(f"{bits:.4f} bits a dimension of test pictures")
    export_model(
        model,
        args.output,
        step=args.steps,
        training_steps=args.steps,
        batch_size=args.batch_size,
        final_loss=round(loss, 4),
        test_bits_per_dim=round(bits, 4),
        compute_dtype="float32",
        image_range=(0.0, 1.0),
        dataset=facts(PICTURES, LABELS, TEST_PICTURES, TEST_LABELS),
    )


if __name__ == "__main__":
    keep_freed_memory()
    jax.config.update("jax_num_cpu_devices", os.cpu_count())  # XLA leaves cores of one device idle
    main()
