"""Trains the bundled `mnist-vae` on MNIST and exports it.

    python examples/train_mnist_vae.py --data DIR --output src/artifex/zoo/mnist-vae

DIR holds the canonical IDX files, gzipped; `--download` fetches the missing ones from a public
mirror. Either way their contents are checked against their known SHA-256. Two CPU cores need about
10 minutes.

`--conditional` trains one that is told the digit (Sohn et al. 2015), but for a tenth of the pictures, so that
it also does without; `--beta 4` one whose divergence counts four times, a β-VAE (Higgins et al. 2017).
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
from mnist import LABELS, PICTURES, TEST_LABELS, TEST_PICTURES, facts, read_idx

from artifex.generative_models.inference import export_model
from artifex.generative_models.models.vae import VAE, elbo

NUM_LABELS = 10
UNTOLD = 0.1  # share of the pictures of a batch whose digit is not told


def read_images(args: argparse.Namespace, name: str) -> np.ndarray:
    """Pictures [N, 28, 28, 1] in [0, 1]."""
    return read_idx(args.data, name, download=args.download)[..., None].astype(np.float32) / 255


def read_labels(args: argparse.Namespace, name: str) -> np.ndarray:
    """Digits, int32 [N]."""
    return read_idx(args.data, name, download=args.download).astype(np.int32)


def negative_elbo(model: VAE, x: jax.Array, label: jax.Array, key: jax.Array, beta: float = 1.0) -> jax.Array:
    """Mean negative ELBO of a batch, nats a picture."""
    posterior = model.encode(x, label)
    mean, log_var = posterior["mean"], posterior["log_var"]
    z = mean + jnp.exp(0.5 * log_var) * jax.random.normal(key, mean.shape)
    return -jnp.mean(elbo(x, model.logits(z, label), mean, log_var, beta))


def some_untold(label: jax.Array, key: jax.Array) -> jax.Array:
    """The digits, of which some are the number that stands for none."""
    is_untold = jax.random.bernoulli(jax.random.fold_in(key, 1), UNTOLD, label.shape)
    return jnp.where(is_untold, NUM_LABELS, label)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--download", action="store_true")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--latent-dim", type=int, default=32)
    parser.add_argument("--conditional", action="store_true", help="tell it the digit")
    parser.add_argument("--beta", type=float, default=1.0, help="what the divergence counts")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    train = read_images(args, PICTURES)
    test = read_images(args, TEST_PICTURES)
    train_label, test_label = read_labels(args, LABELS), read_labels(args, TEST_LABELS)
    num_batches = len(train) // args.batch_size
    training_steps = args.epochs * num_batches

    num_labels = NUM_LABELS if args.conditional else 0
    sizes = (28, 28, 1), args.latent_dim, [32, 64, 128], [128, 48, 32], num_labels
    model = VAE(*sizes, rngs=nnx.Rngs(args.seed))
    graphdef, params = nnx.split(model)
    warmup = num_batches
    schedule = optax.warmup_cosine_decay_schedule(0.0, args.learning_rate, warmup, training_steps, 1e-6)
    optimizer = optax.chain(optax.clip_by_global_norm(200.0), optax.adam(schedule))

    @partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params, opt_state, x, label, key):
        def objective(params):
            return negative_elbo(nnx.merge(graphdef, params), x, some_untold(label, key), key, args.beta)

        loss, grads = jax.value_and_grad(objective)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    @jax.jit
    def evaluate(params, x, label, key):
        return negative_elbo(nnx.merge(graphdef, params), x, label, key)

    opt_state = optimizer.init(params)
    rng = np.random.default_rng(args.seed)
    key = jax.random.key(args.seed)
    for epoch in range(args.epochs):
        start = time.perf_counter()
        order = rng.permutation(len(train))[: num_batches * args.batch_size].reshape(num_batches, -1)
        losses = []
        for i, rows in enumerate(order):
            step_key = jax.random.fold_in(key, epoch * num_batches + i)
            params, opt_state, loss = train_step(params, opt_state, train[rows], train_label[rows], step_key)
            losses.append(loss)
        final_loss = float(np.mean(jax.device_get(losses)))
        print(
            f"epoch {epoch + 1:3d}  loss {final_loss:7.2f}  {time.perf_counter() - start:5.1f} s", flush=True
        )

    bounds = [
        -float(evaluate(params, x, label, jax.random.fold_in(key, 2**31 + draw * 10 + i)))
        for draw in range(10)
        for i, (x, label) in enumerate(zip(np.split(test, 10), np.split(test_label, 10), strict=True))
    ]
    test_elbo = float(np.mean(bounds))
    print(f"test ELBO {test_elbo:.2f} nats a picture")
    export_model(
        nnx.merge(graphdef, params),
        args.output,
        step=training_steps,
        training_steps=training_steps,
        final_loss=round(final_loss, 3),
        image_range=(0.0, 1.0),
        test_elbo=round(test_elbo, 3),
        test_elbo_unit="nats per picture, mean over the 10,000 test pictures and 10 draws of z each",
        **({} if args.beta == 1 else {"beta": args.beta}),
        likelihood="Bernoulli, grey levels in [0, 1] taken as probabilities",
        dataset=facts(PICTURES, TEST_PICTURES, *((LABELS, TEST_LABELS) if args.conditional else ())),
    )


if __name__ == "__main__":
    main()
