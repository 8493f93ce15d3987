"""Trains the bundled `mnist-vqvae` on MNIST, its autoencoder and then the prior of its codes, and exports it.

    python examples/train_mnist_vqvae.py --data DIR --output src/artifex/zoo/mnist-vqvae

DIR holds the canonical IDX files, gzipped; `--download` fetches the missing ones. Two CPU cores need about
12 minutes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from memory import keep_freed_memory
from mnist import LABELS, PICTURES, TEST_PICTURES, facts, read_idx

from artifex.generative_models.inference import Executor, export_model
from artifex.generative_models.models.vqvae import VQVAE, nearest_codes

ARGUMENTS = {
    "input_shape": [28, 28, 1],
    "num_codes": 64,
    "code_features": 16,
    "level_features": [32, 64],
    "num_blocks": 1,
    "prior_features": 96,
    "prior_layers": 4,
    "prior_heads": 4,
    "num_labels": 10,
}
STEPS, PRIOR_STEPS = 2500, 3000
COMMITMENT = 0.25  # weight of the distance of the encoder's vectors to their codes
FORGETTING = 0.99  # of the codebook's averages, a step
SELDOM = 0.03  # share of the mean number of uses below which a code is given up
AVERAGING = 0.998  # of the prior's weights, a step
LOOK = 100  # steps between two reports


class Uses(NamedTuple):
    """Averages that the codebook is made of.

    Args:
        count: Vectors a batch that are nearest to each code.
        total: Their sum.
    """

    count: jax.Array
    total: jax.Array

    def after(self, z: jax.Array, codes: jax.Array, key: jax.Array) -> Uses:
        r"""The averages after a batch of vectors z [vectors, features] and their codes [vectors].

        $$N_k \leftarrow \gamma N_k + (1 - \gamma) n_k, \quad
          m_k \leftarrow \gamma m_k + (1 - \gamma) \sum_{i: c_i = k} z_i, \quad e_k = m_k / N_k$$

        Codes that are hardly used begin anew at one of the vectors.

        References:
            van den Oord et al. 2017, appendix A.1. https://arxiv.org/abs/1711.00937
            Dhariwal et al., *Jukebox: A Generative Model for Music*, 2020, section 3.1.
            https://arxiv.org/abs/2005.00341
        """
        mean = len(z) / len(self.count)
        is_nearest = jax.nn.one_hot(codes, len(self.count))
        count = FORGETTING * self.count + (1 - FORGETTING) * is_nearest.sum(0)
        total = FORGETTING * self.total + (1 - FORGETTING) * is_nearest.T @ z
        others = z[jax.random.randint(key, count.shape, 0, len(z))]
        is_seldom = count < SELDOM * mean
        total = jnp.where(is_seldom[:, None], mean * others, total)
        return Uses(jnp.where(is_seldom, mean, count), total)

    @property
    def codebook(self) -> jax.Array:
        """The means of what is nearest to each code."""
        return self.total / self.count[:, None]


def autoencoder_loss(model: VQVAE, x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    r"""Mean loss a picture, in nats; and the encoder's vectors, with their codes.

    $$-\log p(x \mid z_q) + \beta \lVert z - \mathrm{sg}(e) \rVert^2, \quad z_q = z + \mathrm{sg}(e - z)$$

    with a Bernoulli likelihood, where sg stops gradients: those of the decoder go to the encoder as if
    nothing lay between them.

    References:
        van den Oord et al. 2017, equation 3. https://arxiv.org/abs/1711.00937
    """
    z = model.encoder(x)
    codes = nearest_codes(z, model.codebook[...])
    fixed = jax.lax.stop_gradient(model.vectors(codes))
    logits = model.decoder(z + jax.lax.stop_gradient(fixed - z))
    likelihood = jnp.sum(x * logits - nnx.softplus(logits), (1, 2, 3))
    distance = jnp.sum((z - fixed) ** 2, (1, 2, 3))
    return jnp.mean(COMMITMENT * distance - likelihood), (z, codes)


def prior_loss(model: VQVAE, codes: jax.Array, label: jax.Array) -> jax.Array:
    """Mean negative log-probability of a code, in nats."""
    logits = model.prior(codes, label)
    return optax.softmax_cross_entropy_with_integer_labels(logits, codes).mean()


def adam(rate: float, steps: int) -> optax.GradientTransformation:
    """The optimiser of both trainings."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, min(100, steps // 10), steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-4))


def report(what: str, losses: list[jax.Array], begun: float) -> None:
    """Prints the mean of the last losses, now and then."""
    if len(losses) % LOOK == 0:
        mean = np.mean(jax.device_get(losses[-LOOK:]))
        print(
            f"{what} step {len(losses):6d}  loss {mean:.4f}  {(time.monotonic() - begun) / 60:5.1f} minutes",
            flush=True,
        )


def train_autoencoder(model: VQVAE, pictures: np.ndarray, steps: int, batch_size: int, seed: int) -> VQVAE:
    """Trains encoder, codebook and decoder on uint8 pictures."""
    graphdef, prior, codebook, params = nnx.split(
        model, nnx.PathContains("prior"), nnx.PathContains("codebook"), ...
    )
    print(f"{sum(leaf.size for leaf in jax.tree.leaves((codebook, params))):,} parameters", flush=True)
    optimizer = adam(2e-3, steps)

    @partial(jax.jit, donate_argnums=(0, 1, 2, 3))
    def train_step(params, opt_state, codebook, uses, x, key):
        def loss_of(params):
            return autoencoder_loss(nnx.merge(graphdef, prior, codebook, params), x.astype(jnp.float32) / 255)

        (loss, (z, codes)), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        uses = uses.after(z.reshape(-1, z.shape[-1]), codes.reshape(-1), key)
        codebook = jax.tree.map(lambda _: uses.codebook, codebook)
        return optax.apply_updates(params, updates), opt_state, codebook, uses, loss

    num_codes, features = model.codebook.shape
    state: Any = (params, optimizer.init(params), codebook)
    uses = Uses(jnp.zeros(num_codes), jnp.zeros((num_codes, features)))  # all codes begin anew
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    begun, losses = time.monotonic(), []
    for step in range(steps):
        x = pictures[rng.integers(0, len(pictures), batch_size)]
        *state, uses, loss = train_step(*state, uses, x, jax.random.fold_in(key, step))
        losses.append(loss)
        report("autoencoder", losses, begun)
    params, _, codebook = state
    return nnx.merge(graphdef, prior, codebook, params)


def train_prior(
    model: VQVAE, codes: np.ndarray, labels: np.ndarray, steps: int, batch_size: int, seed: int
) -> tuple[VQVAE, float]:
    """Trains the prior on codes [pictures, codes]; its weights are averaged. Returns the last loss too."""
    graphdef, params, others = nnx.split(model, nnx.PathContains("prior"), ...)
    print(f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters", flush=True)
    optimizer = adam(2e-3, steps)

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def train_step(params, averaged, opt_state, codes, label, step):
        loss, grads = jax.value_and_grad(
            lambda params: prior_loss(nnx.merge(graphdef, params, others), codes, label)
        )(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        decay = jnp.minimum(AVERAGING, (1 + step) / (10 + step))
        averaged = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, averaged, params)
        return params, averaged, opt_state, loss

    state: Any = (params, jax.tree.map(jnp.copy, params), optimizer.init(params))
    rng = np.random.default_rng(seed)
    begun, losses = time.monotonic(), []
    for step in range(steps):
        rows = rng.integers(0, len(codes), batch_size)
        *state, loss = train_step(*state, codes[rows], labels[rows], step)
        losses.append(loss)
        report("prior", losses, begun)
    return nnx.merge(graphdef, state[1], others), float(np.mean(jax.device_get(losses[-LOOK:])))


def in_bfloat16(model: VQVAE) -> VQVAE:
    """The model with its weights as they are stored."""
    graphdef, params = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), jax.device_get(params)))


def rounded(model: VQVAE) -> VQVAE:
    """The model with its weights as they are read again: the prior is to learn the codes of those."""
    graphdef, params = nnx.split(in_bfloat16(model))
    return nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params))


def psnr(x: np.ndarray, found: np.ndarray) -> float:
    """Mean peak signal-to-noise ratio of pictures in [0, 1], in decibels."""
    return float(-10 * np.log10(np.mean((x - found) ** 2, (1, 2, 3))).mean())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--download", action="store_true")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the autoencoder")
    parser.add_argument("--prior-steps", type=int, default=PRIOR_STEPS)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    pictures = read_idx(args.data, PICTURES, download=args.download)[..., None]
    test = read_idx(args.data, TEST_PICTURES, download=args.download)[..., None].astype(np.float32) / 255
    labels = read_idx(args.data, LABELS, download=args.download).astype(np.int32)
    model = VQVAE(**ARGUMENTS, rngs=nnx.Rngs(args.seed))
    model = rounded(train_autoencoder(model, pictures, args.steps, args.batch_size, args.seed))

    executor = Executor(model, tuned=False)
    found = np.asarray(executor("reconstruct", {"x": test})["x"])
    test_psnr = psnr(test, found)
    print(f"PSNR {test_psnr:.2f} dB of the test pictures", flush=True)
    codes = np.asarray(executor("encode", {"x": pictures.astype(np.float32) / 255})["codes"])
    print(f"{len(np.unique(codes))} codes of {model.config['num_codes']} are used", flush=True)
    model, loss = train_prior(
        model, codes.reshape(len(codes), -1), labels, args.prior_steps, args.batch_size, args.seed
    )
    export_model(
        in_bfloat16(model),
        args.output,
        step=args.steps + args.prior_steps,
        training_steps=args.steps,
        prior_training_steps=args.prior_steps,
        batch_size=args.batch_size,
        final_loss=round(loss, 4),
        compute_dtype="float32",
        image_range=(0.0, 1.0),
        test_psnr=round(test_psnr, 3),
        dataset=facts(PICTURES, LABELS, TEST_PICTURES),
    )


if __name__ == "__main__":
    keep_freed_memory()
    main()
