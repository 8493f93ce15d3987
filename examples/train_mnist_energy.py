"""Trains the bundled `mnist-energy` on MNIST and exports it.

    python examples/train_mnist_energy.py --data DIR --output src/artifex/zoo/mnist-energy

DIR holds the canonical IDX files, gzipped; `--download` fetches the missing ones. On two cores it takes
10 minutes.
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
from mnist import LABELS, PICTURES, facts, read_idx

from artifex.generative_models.core.sampling.langevin import energy_and_gradient
from artifex.generative_models.inference import export_model
from artifex.generative_models.models.ebm import EBM

NUM_LABELS = 10
WITHOUT_LABEL = 0.1  # share of pictures whose label is hidden, so that it can be left out
AVERAGING = 0.998  # of the weights, a step
STEPS = 3000
LOOK = 250  # steps between two reports
LOG_SIGMA = -1.0, 1.4  # mean and standard deviation of the logarithm of noise levels
ARGUMENTS = {
    "input_shape": [28, 28, 1],
    "num_labels": NUM_LABELS,
    "level_features": [32, 64],
    "level_convs": [1, 2],
    "num_features": 128,
    "embed_dim": 96,
    "mean": -0.74,  # of MNIST's pixels, as is the deviation
    "std": 0.62,
    "sigma_min": 0.05,
    "sigma_max": 10.0,
    "sigma_walk": 0.5,
    "num_steps": 40,
    "guidance_scale": 2.0,
}


def denoising_loss(model: EBM, x: jax.Array, label: jax.Array, key: jax.Array) -> jax.Array:
    """Mean squared error of the pictures that the energy's gradient finds in noise, over that of its target.

    With D = x - sigma² times the gradient it is the mean of |D - picture|² / c², where
    c = sigma std / sqrt(sigma² + std²), as in table 1 of Karras et al. 2022 (https://arxiv.org/abs/2206.00364):
    denoising score matching (Vincent 2011, https://doi.org/10.1162/NECO_a_00142) at all levels of noise.
    """
    level_key, noise_key = jax.random.split(key)
    center, spread = LOG_SIGMA
    levels = jnp.exp(center + spread * jax.random.normal(level_key, (len(x),)))
    sigma = jnp.clip(levels, model.config["sigma_min"], model.config["sigma_max"])
    wide_sigma, std = sigma[:, None, None, None], model.config["std"]
    noisy = x + wide_sigma * jax.random.normal(noise_key, x.shape)
    _, gradient = energy_and_gradient(EBM.energy, model, noisy, sigma, label)
    size = wide_sigma * std / jnp.sqrt(wide_sigma**2 + std**2)
    return jnp.mean(((noisy - wide_sigma**2 * gradient - x) / size) ** 2)


def train(
    pictures: np.ndarray, labels: np.ndarray, steps: int, batch_size: int, rate: float, seed: int
) -> tuple[EBM, float]:
    """Trains on pictures in [-1, 1]; returns the averaged weights, in bfloat16, and the last loss."""
    graphdef, params = nnx.split(EBM(**ARGUMENTS, rngs=nnx.Rngs(seed)))
    print(f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters", flush=True)
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, min(200, steps // 10), steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-4))

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def train_step(params, averaged, opt_state, x, label, key, step):
        noise_key, hide_key = jax.random.split(key)
        hidden = jax.random.bernoulli(hide_key, WITHOUT_LABEL, label.shape)
        label = jnp.where(hidden, NUM_LABELS, label)
        loss, grads = jax.value_and_grad(
            lambda params: denoising_loss(nnx.merge(graphdef, params), x, label, noise_key)
        )(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        decay = jnp.minimum(AVERAGING, (1 + step) / (10 + step))
        averaged = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, averaged, params)
        return params, averaged, opt_state, loss

    num_devices = math.gcd(batch_size, jax.device_count())
    mesh = Mesh(jax.devices()[:num_devices], "rows")
    of_rows, on_all = NamedSharding(mesh, PartitionSpec("rows")), NamedSharding(mesh, PartitionSpec())
    state = jax.device_put((params, jax.tree.map(jnp.copy, params), optimizer.init(params)), on_all)
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
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

    pictures = read_idx(args.data, PICTURES, download=args.download)[..., None].astype(np.float32) / 127.5 - 1
    labels = read_idx(args.data, LABELS, download=args.download).astype(np.int32)
    model, loss = train(pictures, labels, args.steps, args.batch_size, args.learning_rate, args.seed)
    export_model(
        model,
        args.output,
        step=args.steps,
        training_steps=args.steps,
        batch_size=args.batch_size,
        final_loss=round(loss, 4),
        compute_dtype="float32",
        image_range=(-1.0, 1.0),
        dataset=facts(PICTURES, LABELS),
    )


if __name__ == "__main__":
    keep_freed_memory()
    jax.config.update("jax_num_cpu_devices", os.cpu_count())  # XLA leaves cores of one device idle
    main()
