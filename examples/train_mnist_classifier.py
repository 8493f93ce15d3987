"""Trains the bundled `mnist-classifier`, which measures the samples of the others, and exports it.

    python examples/train_mnist_classifier.py --data DIR --output src/artifex/zoo/mnist-classifier
        --moments src/artifex/zoo/mnist_features.npz

DIR holds the canonical IDX files, gzipped; `--download` fetches the missing ones. Two CPU cores need about
4 minutes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from memory import keep_freed_memory
from mnist import LABELS, PICTURES, TEST_LABELS, TEST_PICTURES, facts, read_idx

from artifex.generative_models.inference import Executor, export_model
from artifex.generative_models.models.classifier import Classifier

NUM_LABELS = 10
FEW = 300  # pictures of training whose features are kept: as many as samples that they are compared with
MOST_SHIFT = 2  # pixels by which pictures of training are moved, at most


def shifted(pictures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pictures moved by a few pixels, each by its own; zeros come in at the edges."""
    side, most = pictures.shape[1], MOST_SHIFT
    padded = np.pad(pictures, ((0, 0), (most, most), (most, most), (0, 0)))
    places = np.arange(side)
    rows, columns = (rng.integers(0, 2 * most + 1, (len(pictures), 1)) + places for _ in range(2))
    return padded[np.arange(len(pictures))[:, None, None], rows[:, :, None], columns[:, None, :]]


def train(
    pictures: np.ndarray, labels: np.ndarray, epochs: int, batch_size: int, rate: float, seed: int
) -> tuple[Classifier, float]:
    """Trains on pictures in [0, 1]; returns the weights, in bfloat16, and the mean loss of the last epoch."""
    graphdef, params = nnx.split(Classifier(pictures.shape[1:], NUM_LABELS, rngs=nnx.Rngs(seed)))
    print(f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters", flush=True)
    num_batches = len(pictures) // batch_size
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, num_batches, epochs * num_batches)
    optimizer = optax.adamw(schedule, weight_decay=1e-2)

    @partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params, opt_state, x, label):
        def loss_of(params):
            logits = nnx.merge(graphdef, params).logits(x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    opt_state, rng = optimizer.init(params), np.random.default_rng(seed)
    for epoch in range(epochs):
        begun, losses = time.perf_counter(), []
        for rows in rng.permutation(len(pictures))[: num_batches * batch_size].reshape(num_batches, -1):
            params, opt_state, loss = train_step(
                params, opt_state, shifted(pictures[rows], rng), labels[rows]
            )
            losses.append(loss)
        mean = float(np.mean(jax.device_get(losses)))
        print(f"epoch {epoch + 1:3d}  loss {mean:.4f}  {time.perf_counter() - begun:5.1f} s", flush=True)
    stored = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), jax.device_get(params))
    return nnx.merge(graphdef, stored), mean


def save_moments(path: Path, executor: Executor, **sets: np.ndarray) -> None:
    """Writes the mean and the covariance of the features of sets of pictures, by their names."""
    found = {}
    for name, pictures in sets.items():
        features = np.asarray(executor("features", {"x": pictures})["features"], np.float64)
        found[f"{name}_mean"] = features.mean(0)
        found[f"{name}_covariance"] = np.cov(features, rowvar=False)
    np.savez_compressed(path, **found)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--moments", type=Path, help="where to write moments of real pictures' features")
    parser.add_argument("--download", action="store_true")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    def read(pictures: str, labels: str) -> tuple[np.ndarray, np.ndarray]:
        x = read_idx(args.data, pictures, download=args.download)[..., None].astype(np.float32) / 255
        return x, read_idx(args.data, labels, download=args.download).astype(np.int32)

    train_x, train_label = read(PICTURES, LABELS)
    test_x, test_label = read(TEST_PICTURES, TEST_LABELS)
    model, loss = train(train_x, train_label, args.epochs, args.batch_size, args.learning_rate, args.seed)
    executor = Executor(model, dtype=jnp.float32)
    accuracy = float((executor("classify", {"x": test_x})["label"] == test_label).mean())
    print(f"{accuracy:.2%} of the test pictures")
    if args.moments is not None:
        save_moments(args.moments, executor, test=test_x, train=train_x[:FEW])
    steps = args.epochs * (len(train_x) // args.batch_size)
    export_model(
        model,
        args.output,
        step=steps,
        training_steps=steps,
        final_loss=round(loss, 4),
        compute_dtype="float32",
        image_range=(0.0, 1.0),
        test_accuracy=round(accuracy, 4),
        dataset=facts(PICTURES, LABELS, TEST_PICTURES, TEST_LABELS),
    )


if __name__ == "__main__":
    keep_freed_memory()
    main()
