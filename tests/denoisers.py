"""A model that takes steps and compiles fast: an untrained transformer for pictures of 4 x 4."""

from flax import nnx
from shared import randomised

from artifex.generative_models.models.denoiser import Denoiser

NETWORK = {
    "num_attention_heads": 1,
    "attention_head_dim": 8,
    "num_layers": 1,
    "in_channels": 1,
    "out_channels": 1,
    "sample_size": 4,
    "patch_size": 2,
    "num_embeds_ada_norm": 4,
}
SCHEDULER = {"_class_name": "DDIMScheduler", "clip_sample": True, "num_train_timesteps": 100}


def denoiser() -> Denoiser:
    """Of four classes, with random weights and 3 steps where nobody says how many."""
    return randomised(
        lambda: Denoiser("dit", NETWORK, SCHEDULER, num_labels=4, num_steps=3, rngs=nnx.Rngs(0))
    )
