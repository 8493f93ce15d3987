"""Models that take steps: whether rows that differ in everything are independent, and how fast they are.

The networks have random weights, since it is the device that is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from families import measured
from flax import nnx
from parts.bench import Bench, Finding, Step, on_cpu
from parts.laws import error, far

from artifex.generative_models.inference import Executor, batch_generate_samples
from artifex.generative_models.inference.offline.sampling import sampling
from artifex.generative_models.models.denoiser import Denoiser

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
DIFFUSION = {
    "_class_name": "DPMSolverMultistepScheduler",
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
}
UNET = {
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "num_class_embeds": 11,
}
DIT = {"in_channels": 4, "patch_size": 2, "num_embeds_ada_norm": 10}
SMALL_UNET = UNET | {"sample_size": 8, "block_out_channels": [32, 32, 32]}
SMALL_DIT = DIT | {"sample_size": 8, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1}
LARGE_UNET = UNET | {"sample_size": 32, "block_out_channels": [128, 256, 256]}
LARGE_DIT = DIT | {"sample_size": 32, "num_attention_heads": 12, "attention_head_dim": 64, "num_layers": 6}
SAMPLERS = ("dpm++2m", "ddim", "euler_a", "heun", "ddpm")


def random_denoiser(network: str, arguments: Mapping[str, Any], scheduler: Mapping[str, Any]) -> Denoiser:
    """Of ten classes, with weights from NumPy."""

    def made() -> Denoiser:
        return Denoiser(network, arguments, scheduler, num_labels=10, rngs=nnx.Rngs(0))

    graphdef, state = nnx.split(nnx.eval_shape(made))
    generator = np.random.default_rng(0)
    random = partial(generator.standard_normal, dtype=np.float32)
    weights = jax.tree.map(lambda leaf: jnp.asarray(0.05 * random(leaf.shape), jnp.float32), state)
    return nnx.merge(graphdef, weights)


def rows_of_loops_are_independent(bench: Bench) -> Iterator[Step]:
    """Rows with other samplers, steps and guidance, in one batch and alone, at once and in chunks."""
    with jax.default_matmul_precision("highest"):
        model = random_denoiser("dit", SMALL_DIT, DIFFUSION)
        executor = Executor(model, batch_sizes=(bench.sizes.law_batch_sizes[1],), tuned=False)
        yield Step("dit, float32, highest precision", partial(independence, executor))


def independence(executor: Executor) -> Finding:
    """Whether rows are the same, bit for bit, at one batch size."""
    num_rows = executor.batch_sizes[-1]
    given = {
        "label": np.arange(num_rows) % 10,
        "num_steps": 3 + np.arange(num_rows) % 4,
        "sampler": [SAMPLERS[i % len(SAMPLERS)] for i in range(num_rows)],
        "guidance_scale": np.where(np.arange(num_rows) % 2, 1.0, 3.0),
    }
    how, key = sampling(executor, num_rows, 1.0, given), nnx.Rngs(0).sample()
    whole = np.asarray(batch_generate_samples(executor, num_rows, rngs=0, **given))
    first = how.rows(0, 1)
    alone = np.asarray(executor("generate", first, key=key, num_rows=1, **how.options)["x"])
    broken = [] if np.array_equal(alone, whole[:1]) else ["a row alone differs"]
    for every in (1, 3):
        rows = how.rows(0, num_rows)
        looks = executor.iterate("generate", rows, every=every, key=key, num_rows=num_rows, **how.options)
        chunked = list(looks)[-1].outputs["x"]
        if not np.array_equal(chunked, whole):
            broken.append(f"chunks of {every} differ by {far(error({'x': chunked}, {'x': whole}))}")
    compiled = executor.compile_count
    batch_generate_samples(executor, num_rows, rngs=1, **{**given, "num_steps": 9, "sampler": "unipc"})
    if executor.compile_count != compiled:
        broken.append("other fields compiled anew")
    facts = {"broken": broken, "rows": num_rows}
    return Finding(facts, ", ".join(broken) or "bits equal, nothing compiled", broken)


def loops_beside_others(bench: Bench) -> Iterator[Step]:
    """The time of 20 steps beside one program by hand and a loop over a jitted step."""
    small = on_cpu() or bench.sizes.num_rounds < 7
    num_rows = 2 if small else 64
    kinds = {
        "unet, float32": ("unet", SMALL_UNET if small else LARGE_UNET, DIFFUSION, None),
        "dit, bfloat16": ("dit", SMALL_DIT if small else LARGE_DIT, FLOW, "bfloat16"),
    }
    for what, (*network, dtype) in kinds.items():
        make = partial(random_denoiser, *network)
        yield Step(f"{what}, {num_rows} rows", partial(compared, bench, make, num_rows, dtype))


def compared(bench: Bench, make: Callable[[], Denoiser], num_rows: int, dtype: str | None) -> Finding:
    found = measured(make(), num_rows, bench.sizes.num_rounds, dtype)
    over = ", ".join(f"{what} {value:.3f}" for what, value in found["over"].items())
    return Finding(found, f"{1e3 * found['seconds']['Artifex']:.1f} ms; {over}")
