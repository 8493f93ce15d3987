"""Trains the bundled `mnist-gan`, a style-based generator that draws the digit that its label says.

    python examples/train_mnist_gan.py --data DIR --output src/artifex/zoo/mnist-gan

DIR holds the canonical IDX files, gzipped; `--download` fetches the missing ones. Two CPU cores need about
10 minutes.

References:
    Goodfellow et al., *Generative Adversarial Networks*, 2014, section 3: the loss of the generator that does
    not saturate. https://arxiv.org/abs/1406.2661
    Mescheder et al., *Which Training Methods for GANs do actually Converge?*, 2018, equation 9: R1.
    https://arxiv.org/abs/1801.04406
    Miyato and Koyama, *cGANs with Projection Discriminator*, 2018. https://arxiv.org/abs/1802.05637
    Karras et al., *Analyzing and Improving the Image Quality of StyleGAN*, 2020, section 3.1: R1 seldom.
    https://arxiv.org/abs/1912.04958
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from memory import keep_freed_memory
from mnist import LABELS, PICTURES, facts, read_idx

from artifex.generative_models.core.convolutions import ConvShape, forms_of_convolutions
from artifex.generative_models.inference import export_model
from artifex.generative_models.models.gan import prior
from artifex.generative_models.models.stylegan import StyleGAN

NUM_LABELS = 10
STEPS = 4000
FEATURES = (96, 64)  # of the generator, before each doubling
DISCRIMINATOR = (32, 64, 128)  # features after each halving
AVERAGING = 0.998  # of the weights, a step
MIXED = 0.5  # share of samples of two styles
GAMMA, R1_EVERY = 1.0, 8  # of the penalty R1, which is for every so many steps
SLOW = 0.1  # of the rate, for the mapping
GROUP = 8  # rows of which the discriminator sees the deviation
LOOK = 250  # steps between two reports
MEAN_OF = 2000  # draws of each class
FAST = {ConvShape(7 * s, 7 * s, c, c, False): 4 for s, c in zip((1, 2), FEATURES, strict=True)}


class Discriminator(nnx.Module):
    """How real pictures of labels look: a number, from below 0 for samples to above 0 for real ones."""

    def __init__(self, features: Sequence[int], num_labels: int, *, rngs: nnx.Rngs):
        self.convs = nnx.List(
            nnx.Conv(c_in, c_out, (3, 3), strides=2, rngs=rngs) for c_in, c_out in pairwise((1, *features))
        )
        self.hidden = nnx.Linear(16 * features[-1] + 1, features[-1], rngs=rngs)
        self.head = nnx.Linear(features[-1], 1, rngs=rngs)
        self.embed = nnx.Embed(num_labels, features[-1], rngs=rngs)

    def __call__(self, x: jax.Array, label: jax.Array) -> jax.Array:
        """Of pictures [batch, 28, 28, 1] in [0, 1] and labels [batch]."""
        x = 2 * x - 1
        for conv in self.convs:
            x = nnx.leaky_relu(conv(x), 0.2)
        x = x.reshape(len(x), -1)
        x = nnx.leaky_relu(self.hidden(jnp.concatenate([x, variety(x)], 1)), 0.2)
        found = self.head(x)[:, 0]
        return found + (self.embed(label) * x).sum(1) / x.shape[1] ** 0.5


def variety(x: jax.Array) -> jax.Array:
    """Mean deviation of the features in groups of rows, [batch, 1], which tells samples that are all alike.

    References:
        Karras et al., *Progressive Growing of GANs for Improved Quality, Stability, and Variation*, 2018,
        section 3. https://arxiv.org/abs/1710.10196
    """
    groups = x.reshape(-1, GROUP, x.shape[-1])
    deviation = jnp.sqrt(groups.var(1) + 1e-8).mean(1, keepdims=True)
    return jnp.repeat(deviation, GROUP, axis=0)


def r1(judge: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, label: jax.Array) -> jax.Array:
    """Mean squared length of the slope of what a discriminator says of pictures."""
    slope = jax.grad(lambda x: judge(x, label).sum())(x)
    return jnp.square(slope).sum((1, 2, 3)).mean()


def drawn(model: StyleGAN, label: jax.Array, key: jax.Array) -> jax.Array:
    """Pictures, of which some have two styles."""
    key, layer_key, mixed_key = jax.random.split(key, 3)
    keys = jax.random.split(key, len(label))
    w, other = (model.styles(prior(keys, model.latent_dim, other=which), label) for which in (False, True))
    own = jax.random.randint(layer_key, (len(label), 1), 1, model.num_styles)
    own = jnp.where(jax.random.bernoulli(mixed_key, MIXED, own.shape), own, model.num_styles)
    styles = [jnp.where(layer < own, w, other) for layer in range(model.num_styles)]
    return model.synthesis(styles, model.noises(keys))


def mean_styles(model: StyleGAN, seed: int) -> jax.Array:
    """The mean of w, of each class."""
    z = prior(jax.random.split(jax.random.key(seed), MEAN_OF), model.latent_dim)
    mean = jax.jit(lambda model, label: model.styles(z, jnp.full(len(z), label)).mean(0))
    return jnp.stack([mean(model, label) for label in range(model.num_labels)])


def train(
    pictures: np.ndarray, labels: np.ndarray, steps: int, batch_size: int, rate: float, seed: int
) -> tuple[StyleGAN, list[float]]:
    """Trains on pictures in [0, 1].

    Returns:
        The averaged generator, in bfloat16; its last loss and that of the discriminator.
    """
    rngs = nnx.Rngs(seed)
    g_def, g_params = nnx.split(StyleGAN((28, 28, 1), 64, FEATURES, NUM_LABELS, rngs=rngs))
    d_def, d_params = nnx.split(Discriminator(DISCRIMINATOR, NUM_LABELS, rngs=rngs))
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(params)) for params in (g_params, d_params)]
    print(f"{sizes[0]:,} parameters, and {sizes[1]:,} of the discriminator", flush=True)
    adam = partial(optax.adam, optax.linear_schedule(rate, rate / 10, steps // 2, steps // 2), 0.0, 0.99)
    parts = jax.tree_util.tree_map_with_path(
        lambda path, _: "mapper" if "mapper" in jax.tree_util.keystr(path) else "layers", g_params
    )
    of_parts = {"mapper": optax.chain(adam(), optax.scale(SLOW)), "layers": adam()}
    g_optimizer, d_optimizer = optax.multi_transform(of_parts, parts), adam()

    @partial(jax.jit, donate_argnums=0)
    def train_step(state, x, label, key, step):
        """One step of both networks, from the same samples."""
        g_params, d_params, averaged, g_state, d_state = state
        fake, to_params = jax.vjp(lambda params: drawn(nnx.merge(g_def, params), label, key), g_params)

        def g_loss_of(fake):
            return nnx.softplus(-nnx.merge(d_def, d_params)(fake, label)).mean()

        def d_loss_of(d_params):
            judge = nnx.merge(d_def, d_params)
            return nnx.softplus(judge(fake, label)).mean() + nnx.softplus(-judge(x, label)).mean()

        def penalty_of(d_params):
            return 0.5 * GAMMA * R1_EVERY * r1(nnx.merge(d_def, d_params), x, label)

        g_loss, to_fake = jax.value_and_grad(g_loss_of)(fake)
        d_loss, d_grads = jax.value_and_grad(d_loss_of)(d_params)
        d_grads = jax.lax.cond(
            step % R1_EVERY == 0,
            lambda: jax.tree.map(jnp.add, d_grads, jax.grad(penalty_of)(d_params)),
            lambda: d_grads,
        )
        updates, g_state = g_optimizer.update(*to_params(to_fake), g_state, g_params)
        g_params = optax.apply_updates(g_params, updates)
        updates, d_state = d_optimizer.update(d_grads, d_state, d_params)
        d_params = optax.apply_updates(d_params, updates)
        decay = jnp.minimum(AVERAGING, (1 + step) / (10 + step))
        averaged = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, averaged, g_params)
        return (g_params, d_params, averaged, g_state, d_state), (g_loss, d_loss)

    averaged = jax.tree.map(jnp.copy, g_params)
    state = g_params, d_params, averaged, g_optimizer.init(g_params), d_optimizer.init(d_params)
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    begun, losses = time.monotonic(), []
    for step in range(steps):
        rows = rng.integers(0, len(pictures), batch_size)
        with forms_of_convolutions(FAST):
            state, loss = train_step(state, pictures[rows], labels[rows], jax.random.fold_in(key, step), step)
        losses.append(loss)
        if (step + 1) % LOOK == 0:
            means, minutes = np.mean(jax.device_get(losses[-LOOK:]), 0), (time.monotonic() - begun) / 60
            print(
                f"step {step + 1:6d}  loss {means[0]:.4f} {means[1]:.4f}  {minutes:5.1f} minutes", flush=True
            )
    means = np.mean(jax.device_get(losses[-LOOK:]), 0)
    stored = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), jax.device_get(state[2]))
    wide = nnx.merge(g_def, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), stored))
    model = nnx.merge(g_def, stored)
    model.mean_w[...] = mean_styles(wide, seed).astype(jnp.bfloat16)
    return model, [round(float(mean), 4) for mean in means]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--download", action="store_true")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    pictures = read_idx(args.data, PICTURES, download=args.download)[..., None].astype(np.float32) / 255
    labels = read_idx(args.data, LABELS, download=args.download).astype(np.int32)
    model, losses = train(pictures, labels, args.steps, args.batch_size, args.learning_rate, args.seed)
    export_model(
        model,
        args.output,
        step=args.steps,
        training_steps=args.steps,
        final_loss=losses[0],
        discriminator_loss=losses[1],
        compute_dtype="float32",
        image_range=(0.0, 1.0),
        dataset=facts(PICTURES, LABELS),
    )


if __name__ == "__main__":
    keep_freed_memory()
    main()
