"""A tiny model of each family that draws, with random weights."""

from collections.abc import Callable, Mapping
from typing import Any

from denoisers import denoiser
from flax import nnx
from shared import randomised

from artifex.generative_models.models.autoregressive import Autoregressive
from artifex.generative_models.models.dcgan import DCGAN
from artifex.generative_models.models.ebm import EBM
from artifex.generative_models.models.realnvp import RealNVP
from artifex.generative_models.models.stylegan import StyleGAN
from artifex.generative_models.models.vae import VAE
from artifex.generative_models.models.vqvae import VQVAE

SHAPE = (8, 8, 1)
LABELS = 3

FAMILIES: Mapping[str, Callable[[], Any]] = {
    "autoregressive": lambda: randomised(
        lambda: Autoregressive(SHAPE, 3, 2, 8, 1, 2, num_labels=LABELS, rngs=nnx.Rngs(0))
    ),
    "dcgan": lambda: randomised(lambda: DCGAN(SHAPE, 4, (4,), num_labels=LABELS, rngs=nnx.Rngs(0))),
    "denoiser": denoiser,
    "ebm": lambda: randomised(lambda: EBM(SHAPE, LABELS, (4,), (1,), 6, 4, num_steps=5, rngs=nnx.Rngs(0))),
    "realnvp": lambda: randomised(
        lambda: RealNVP(SHAPE, (2,), (1,), (4,), num_labels=LABELS, rngs=nnx.Rngs(0))
    ),
    "stylegan": lambda: randomised(lambda: StyleGAN(SHAPE, 4, (4,), num_labels=LABELS, rngs=nnx.Rngs(0))),
    "vae": lambda: randomised(lambda: VAE(SHAPE, 4, (4,), (4,), num_labels=LABELS, rngs=nnx.Rngs(0))),
    "vqvae": lambda: randomised(
        lambda: VQVAE(SHAPE, 5, 3, (4, 6), 1, 8, 1, 2, num_labels=LABELS, rngs=nnx.Rngs(0))
    ),
}
STEPPED = ("autoregressive", "denoiser", "ebm", "vqvae")  # those that take steps, each row so many
