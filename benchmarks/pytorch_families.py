"""Networks of diffusers in PyTorch on the CPU, and in Artifex, which loads what diffusers saved.

A pipeline's loop of 20 DDIM steps from given noise, around the U-Net of `google/ddpm-cifar10-32` at half its
width, and around DiT-S/2 on latents of 32 by 32 by 4. PyTorch may run eagerly, with channels last, or
compiled: the fastest of these is the baseline, in turns with Artifex as it is and as `tune` made it. Samples
are compared before anything is timed. `parity` takes the bundled `mnist-diffusion` the other way: Artifex
writes it, and diffusers draws its samples.

Both need PyTorch and diffusers beside Artifex: `benchmarks/requirements-pytorch.txt`.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import Row, in_turns, report

import artifex
from artifex.generative_models.inference import load_exported_model
from artifex.generative_models.inference.formats.diffusers_export import export_diffusers
from artifex.generative_models.inference.tuning.optimize import tune

try:
    import diffusers
    import torch
except ModuleNotFoundError:
    sys.exit("PyTorch is missing: python -m pip install -r benchmarks/requirements-pytorch.txt")

STEPS = 20
ROWS, ROUNDS = 4, 5
SCHEDULER = {"beta_schedule": "linear", "clip_sample": False}
UNET = {
    "sample_size": 32,
    "block_out_channels": (64, 128, 128, 128),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
DIT = {"num_attention_heads": 6, "attention_head_dim": 64, "num_layers": 12, "in_channels": 4}
TOLERANCE = 1e-3  # of the samples' deviation


def cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def randomised(network: torch.nn.Module) -> torch.nn.Module:
    """The network with no weight that is zero from the start, as its last ones are."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.02 * torch.randn(weight.shape))
    return network.eval()


def saved(network: torch.nn.Module, folder: Path) -> Path:
    """A pipeline's directory with the network, as far as Artifex reads it."""
    scheduler = diffusers.DDIMScheduler(**SCHEDULER)
    if isinstance(network, diffusers.UNet2DModel):
        diffusers.DDIMPipeline(network, scheduler).save_pretrained(folder)
        return folder
    network.save_pretrained(folder / "transformer")
    scheduler.save_pretrained(folder / "scheduler")
    index = '{"_class_name": "DiTPipeline", "transformer": ["diffusers", "DiTTransformer2DModel"], '
    (folder / "model_index.json").write_text(index + '"scheduler": ["diffusers", "DDIMScheduler"]}')
    return folder


def torch_call(network: Any, noise: torch.Tensor, label: torch.Tensor | None) -> Callable[[], torch.Tensor]:
    """The loop of diffusers' pipelines."""
    scheduler = diffusers.DDIMScheduler(**SCHEDULER)
    scheduler.set_timesteps(STEPS)
    given = {} if label is None else {"class_labels": label}

    @torch.inference_mode()
    def run() -> torch.Tensor:
        x = noise
        for time in scheduler.timesteps:
            times = time.expand(len(x))
            o = network(x, times, **given).sample[:, : x.shape[1]]
            x = scheduler.step(o, time, x).prev_sample
        return x

    return run


def forms(network: torch.nn.Module, noise: torch.Tensor, label: torch.Tensor | None) -> dict[str, Any]:
    """PyTorch's ways to run it."""
    last = {"memory_format": torch.channels_last}
    found = {"eager": torch_call(network, noise, label)}
    wide = network.__class__.from_config(network.config).eval()
    wide.load_state_dict(network.state_dict())
    wide = wide.to(**last)
    found["channels last"] = torch_call(wide, noise.contiguous(**last), label)
    if shutil.which("c++"):  # torch.compile builds with it
        for name, made, x in (("", network, noise), (", channels last", wide, noise.contiguous(**last))):
            found[f"compiled{name}"] = torch_call(torch.compile(made, dynamic=False), x, label)
    return found


def compared(name: str, network: torch.nn.Module, folder: Path) -> tuple[list[Row], dict]:
    """Rows of the table, and facts."""
    config = network.config
    shape = (ROWS, config["in_channels"], config["sample_size"], config["sample_size"])
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    label = torch.arange(ROWS) if "num_embeds_ada_norm" in config else None
    rows = np.ascontiguousarray(noise.numpy().transpose(0, 2, 3, 1))
    said = {} if label is None else {"label": label.numpy(), "guidance_scale": 1.0}

    def ours() -> Callable[[], np.ndarray]:
        pipeline = artifex.InferencePipeline(load_exported_model(folder)[0], batch_size=ROWS)
        return lambda: pipeline.call("from_noise", noise=rows, num_steps=STEPS, **said)["x"]

    calls = forms(network, noise, label)
    wanted = calls["eager"]().numpy()
    for form, call in calls.items():
        assert np.abs(call().numpy() - wanted).max() < 1e-2 * wanted.std(), form
    seconds = {form: min(values) for form, values in in_turns(calls, 2).items()}
    best = min(seconds, key=seconds.__getitem__)
    ways = {best: calls[best], "Artifex": ours()}
    if isinstance(network, diffusers.UNet2DModel):  # has convolutions, whose forms are there to be chosen
        # Rows of a call are spread over the cores: each runs so many.
        tune(load_exported_model(folder)[0], "from_noise", batch_sizes=[ROWS // cores()])
        ways["Artifex, tuned"] = ours()
    errors = {}
    for form in list(ways)[1:]:
        found = ways[form]().transpose(0, 3, 1, 2)
        errors[form] = float(np.abs(found - wanted).max() / wanted.std())
        assert errors[form] < TOLERANCE, (name, form, errors[form])
    times = in_turns(ways, ROUNDS)
    medians = seconds | {form: statistics.median(values) for form, values in times.items()}
    factors = {
        form: statistics.median(b / o for b, o in zip(times[best], times[form], strict=True))
        for form in errors
    }
    parameters = sum(weight.numel() for weight in network.parameters()) / 1e6
    title = f"{name}, {parameters:.1f} M parameters, {ROWS} rows"
    table: list[Row] = [
        [f"{title}: {form}", f"{value * 1000:,.0f} ms", f"{factors.get(form, medians[best] / value):.2f}"]
        for form, value in medians.items()
    ]
    facts = {
        "over_best": {form: round(factor, 3) for form, factor in factors.items()},
        "best": best,
        "error": max(errors.values()),
    }
    return table, {name: facts}


def speed() -> None:
    table: list[Row] = []
    facts: dict[str, object] = {}
    networks = {"U-Net": diffusers.UNet2DModel(**UNET), "DiT-S/2": diffusers.DiTTransformer2DModel(**DIT)}
    for name, made in networks.items():
        network = randomised(made)
        with tempfile.TemporaryDirectory() as temporary:
            folder = saved(network, Path(temporary) / "saved")
            rows, found = compared(name, network, folder)
        table += rows
        facts |= found
    versions = {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "threads": torch.get_num_threads(),
    }
    columns = ["20 steps of DDIM", "", "over PyTorch's best"]
    report("pytorch_families", columns, table, {**facts, **versions})


def parity() -> None:
    """What diffusers draws with our trained U-Net, from the directory that we write, beside what we draw."""
    model, _, _ = load_exported_model("mnist-diffusion")
    noise = np.random.default_rng(0).standard_normal((10, 28, 28, 1)).astype(np.float32)
    labels = np.arange(10)
    pipeline = artifex.InferencePipeline(model, batch_size=10)
    ours = pipeline.call(
        "from_noise", noise=noise, num_steps=STEPS, sampler="ddim", label=labels, guidance_scale=1.0
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = export_diffusers(model, Path(temporary) / "written")
        network = diffusers.UNet2DModel.from_pretrained(folder / "unet").eval()
        settings = diffusers.DDIMScheduler.load_config(folder / "scheduler")
        scheduler = diffusers.DDIMScheduler.from_config(settings)
    scheduler.set_timesteps(STEPS)
    x = torch.from_numpy(noise.transpose(0, 3, 1, 2)).contiguous()
    with torch.inference_mode():
        for time in scheduler.timesteps:
            o = network(x, time.expand(10), torch.from_numpy(labels)).sample
            x = scheduler.step(o, time, x).prev_sample
    theirs = x.numpy().transpose(0, 2, 3, 1)
    error = float(np.abs(ours["x"] - theirs).max() / theirs.std())
    rows: list[Row] = [["mnist-diffusion in diffusers, 20 steps of DDIM, 10 rows", f"{error:.1e}"]]
    report("pytorch_families: parity", ["", "largest error / deviation"], rows, {"error": error})
    assert error <= TOLERANCE


if __name__ == "__main__":
    os.environ["ARTIFEX_CACHE_DIR"] = tempfile.mkdtemp()  # with no tuning of earlier days
    torch.set_num_threads(cores())
    parity()
    speed()
