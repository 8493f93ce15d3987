"""Trains the bundled `mnist-realnvp` on MNIST and exports it.

    python examples/train_mnist_realnvp.py --data DIR --output src/artifex/zoo/mnist-realnvp

DIR holds the canonical IDX files, gzipped; `--download` fetches the missing ones. It takes 29 minutes of
processor time, which two cores share.
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

from artifex.generative_models.core.levels import dequantized
from artifex.generative_models.inference import Executor, export_model
from artifex.generative_models.models.bijections import squeezed
from artifex.generative_models.models.realnvp import RealNVP, Step

NUM_LABELS = 10
FLOW = {
    "input_shape": [28, 28, 1],
    "level_squeezes": [2, 2],
    "level_steps": [4, 8],
    "level_features": [48, 128],
    "num_labels": NUM_LABELS,
    "scaling": "logit",
    "boundary": 0.002,
}
WITHOUT_LABEL = 0.1  # share of pictures whose label is hidden, so that densities without one are learned too
AVERAGING = 0.998  # of the weights, a step
FEW = 512  # pictures that the scales before training come from
STEPS = 5000
LOOK = 250  # steps between two reports


@nnx.jit
def normalise(step: Step, x: jax.Array) -> jax.Array:
    """Has a step begin with channels of mean 0 and deviation 1 over these; returns what it gives for them.

    References:
        Kingma and Dhariwal 2018, section 3.1. https://arxiv.org/abs/1807.03039
    """
    step.norm.bias[...] = -x.mean((0, 1, 2))
    step.norm.log_scale[...] = -jnp.log(x.std((0, 1, 2)) + 1e-3)
    return step.forward(x, jnp.full(len(x), NUM_LABELS))[0]


def normalised(x: jax.Array, seed: int) -> RealNVP:
    """A model to train, of which each step is normalised for pictures."""
    model = RealNVP(**FLOW, rngs=nnx.Rngs(seed))
    x, _ = model.scaler.forward(x)
    for factor, steps in zip(model.level_squeezes, model.levels, strict=True):
        x = squeezed(x, factor)
        for step in steps:
            x = normalise(step, x)
        x = x[..., : x.shape[-1] // 2]
    return model


def train(
    pictures: np.ndarray, labels: np.ndarray, steps: int, batch_size: int, rate: float, seed: int
) -> tuple[RealNVP, float]:
    """Trains on pictures in [0, 1]; returns the averaged weights, in bfloat16, and the last loss, in bits."""
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    few = jnp.asarray(pictures[:FEW])
    graphdef, params = nnx.split(normalised(dequantized(few, jax.random.split(key, len(few))), seed))
    print(f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters", flush=True)
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, min(200, steps // 10), steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    per_dim = math.log(2) * math.prod(pictures.shape[1:])

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def train_step(params, averaged, opt_state, x, label, key, step):
        noise_key, hide_key = jax.random.split(key)
        x = dequantized(x, jax.random.split(noise_key, len(x)))
        label = jnp.where(jax.random.bernoulli(hide_key, WITHOUT_LABEL, label.shape), NUM_LABELS, label)

        def loss_of(params):
            return math.log2(255) - jnp.mean(nnx.merge(graphdef, params).log_prob(x, label)) / per_dim

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
    begun, losses = time.monotonic(), []
    for step in range(steps):
        rows = rng.integers(0, len(pictures), batch_size)
        batch = jax.device_put((pictures[rows], labels[rows]), of_rows)
        *state, loss = train_step(*state, *batch, jax.random.fold_in(key, step), step)
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
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    def read(pictures: str, labels: str) -> tuple[np.ndarray, np.ndarray]:
        x = read_idx(args.data, pictures, download=args.download)[..., None].astype(np.float32) / 255
        return x, read_idx(args.data, labels, download=args.download).astype(np.int32)

    train_x, train_label = read(PICTURES, LABELS)
    test_x, test_label = read(TEST_PICTURES, TEST_LABELS)
    model, loss = train(train_x, train_label, args.steps, args.batch_size, args.learning_rate, args.seed)
    executor, key, bits = Executor(model, dtype=jnp.float32), jax.random.key(args.seed), {}
    for name, label in {"": np.full_like(test_label, NUM_LABELS), "_of_class": test_label}.items():
        found = executor("log_prob", {"x": test_x, "label": label}, key=key, dequantize=True)
        bits[f"test_bits_per_dim{name}"] = round(float(np.mean(found["bits_per_dim"])), 4)
    print(", ".join(f"{name} {value}" for name, value in bits.items()))
    export_model(
        model,
        args.output,
        step=args.steps,
        training_steps=args.steps,
        batch_size=args.batch_size,
        final_loss=round(loss, 4),
        compute_dtype="float32",
        image_range=(0.0, 1.0),
        **bits,
        test_bits_unit="bits a dimension of the 10,000 test pictures, 256 levels, uniformly dequantised",
        dataset=facts(PICTURES, LABELS, TEST_PICTURES, TEST_LABELS),
    )


if __name__ == "__main__":
    keep_freed_memory()
    jax.config.update("jax_num_cpu_devices", os.cpu_count())  # XLA leaves cores of one device idle
    main()
