"""Writes `diffusers/`: tiny models and pipelines as diffusers saves them, and what they give.

Run with diffusers 0.42 and PyTorch 2.13 installed: `python tests/golden/make_directories.py`. All weights are
random, those of normalisations too. `golden.npz` in each directory has inputs and outputs with the channels
last; the noise of a step is that of all rows.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import torch
from diffusers.pipelines.ddim import pipeline_ddim
from diffusers.pipelines.ddpm import pipeline_ddpm
from diffusers.pipelines.dit import pipeline_dit
from diffusers.schedulers import scheduling_ddpm

FOLDER = Path(__file__).parent / "diffusers"
ROWS, STEPS = 2, 5

SMALL = {
    "sample_size": 8,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [4, 8],
    "norm_num_groups": 2,
    "layers_per_block": 1,
    "attention_head_dim": 4,
}
LIKE_DDPM = SMALL | {
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}
UNETS = {
    "unet-ddpm": LIKE_DDPM,
    "unet-attention": SMALL
    | {
        "down_block_types": ["AttnDownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D"],
        "num_class_embeds": 3,
    },
    "unet-scale-shift": SMALL | {"block_out_channels": [4, 4], "resnet_time_scale_shift": "scale_shift"},
    "unet-fourier": SMALL | {"block_out_channels": [4, 4], "time_embedding_type": "fourier"},
}
DIT = {
    "num_attention_heads": 2,
    "attention_head_dim": 4,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 2,
    "sample_size": 4,
    "patch_size": 2,
    "num_embeds_ada_norm": 5,
}
TINY = {
    "encoder_block_out_channels": [8, 8, 8],
    "decoder_block_out_channels": [8, 8, 8],
    "num_encoder_blocks": [1, 1, 2],
    "num_decoder_blocks": [2, 1, 1],
    "latent_channels": 4,
}


def randomised(model: Any) -> Any:
    """The model with other weights than those that it begins with, which are zeros and ones in places."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn(weight.shape))
    return model.eval()


def last(x: torch.Tensor) -> np.ndarray:
    """A batch with its channels last."""
    return np.ascontiguousarray(x.detach().numpy().transpose(0, 2, 3, 1))


def main() -> None:
    torch.manual_seed(0)
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name, config in UNETS.items():
        model = randomised(diffusers.UNet2DModel(**config))
        model.save_pretrained(FOLDER / name)
        x, time = 0.2 * torch.randn(ROWS, 3, 8, 8), torch.tensor([3.0, 700.0])
        label = torch.tensor([2, 0]) if "num_class_embeds" in config else None
        given = {"x": last(x), "time": time.numpy()} | ({} if label is None else {"label": label.numpy()})
        with torch.no_grad():
            write(FOLDER / name, **given, y=last(model(x, time, label).sample))

    transformer = randomised(diffusers.DiTTransformer2DModel(**DIT))
    transformer.save_pretrained(FOLDER / "dit")
    x, time, label = 0.2 * torch.randn(ROWS, 4, 4, 4), torch.tensor([3, 700]), torch.tensor([4, 0])
    with torch.no_grad():
        y = transformer(x, timestep=time, class_labels=label).sample
    given = {"x": last(x), "time": time.numpy().astype(np.float32), "label": label.numpy()}
    write(FOLDER / "dit", **given, y=last(y))

    tiny = randomised(diffusers.AutoencoderTiny(**TINY))
    tiny.save_pretrained(FOLDER / "autoencoder-tiny")
    pictures = torch.rand(ROWS, 3, 8, 12) * 2 - 1
    with torch.no_grad():
        latents = tiny.encode(pictures).latents
        back = tiny.decode(latents).sample
    write(FOLDER / "autoencoder-tiny", x=last(pictures), mean=last(latents), y=last(back))

    unet = randomised(diffusers.UNet2DModel(**LIKE_DDPM))
    ddpm = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())
    write_pipeline(ddpm, "pipeline-ddpm", {})
    ddim = diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler(beta_schedule="scaled_linear"))
    write_pipeline(ddim, "pipeline-ddim", {})
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4,), latent_channels=4, norm_num_groups=2, sample_size=4, scaling_factor=1.0
    )
    classes = DIT | {"num_layers": 1, "num_embeds_ada_norm": 1000}  # which that pipeline takes for granted
    transformer = randomised(diffusers.DiTTransformer2DModel(**classes))
    dit = diffusers.DiTPipeline(transformer, vae, diffusers.DDIMScheduler(clip_sample=False))
    write_pipeline(dit, "pipeline-dit", {"class_labels": [4, 1], "guidance_scale": 3.0})


def write_pipeline(pipeline: Any, name: str, arguments: dict[str, Any]) -> None:
    """Saves a pipeline, and what it makes of noise in a few steps."""
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(FOLDER / name)
    shutil.rmtree(FOLDER / name / "vae", ignore_errors=True)  # which is not run, and large
    of = {"pipeline-dit": pipeline_dit}.get(name, pipeline_ddpm if name == "pipeline-ddpm" else pipeline_ddim)
    channels, size = (4, 4) if name == "pipeline-dit" else (3, 8)
    start = torch.randn(ROWS, channels, size, size)
    noise = torch.randn(STEPS, channels, size, size)
    count = {} if "class_labels" in arguments else {"batch_size": ROWS}
    samples: list[torch.Tensor] = []
    with fed(of, start, noise), capturing(pipeline, samples):
        pipeline(**arguments, **count, num_inference_steps=STEPS, output_type="np")
    given = {"label": np.array(arguments["class_labels"])} if "class_labels" in arguments else {}
    write(FOLDER / name, noise=last(start), added=last(noise), y=last(samples[-1][:ROWS]), **given)


@contextmanager
def fed(module: Any, start: torch.Tensor, noise: torch.Tensor) -> Iterator[None]:
    """Has a pipeline start from noise, and its scheduler add that of each step to all rows."""
    steps = iter(noise)

    def of_step(shape: Any, **_: Any) -> torch.Tensor:
        return next(steps).expand(*shape)

    with (
        mock.patch.object(module, "randn_tensor", return_value=start),
        mock.patch.object(scheduling_ddpm, "randn_tensor", of_step),
    ):
        yield


@contextmanager
def capturing(pipeline: Any, samples: list[torch.Tensor]) -> Iterator[None]:
    """Keeps the samples of every step, before anything is done to the last."""
    step = pipeline.scheduler.step

    def kept(*arguments: Any, **settings: Any) -> Any:
        found = step(*arguments, **settings)
        samples.append(found.prev_sample)
        return found

    with mock.patch.object(pipeline.scheduler, "step", kept):
        yield


def write(folder: Path, **arrays: np.ndarray) -> None:
    """Writes the arrays of a directory, which says nothing of this machine and stays small."""
    np.savez_compressed(folder / "golden.npz", **{name: np.asarray(array) for name, array in arrays.items()})
    for file in folder.rglob("*config.json"):
        config = {key: value for key, value in json.loads(file.read_text()).items() if key != "_name_or_path"}
        file.write_text(json.dumps(config, indent=2) + "\n")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert size < 100_000, (folder, size)


if __name__ == "__main__":
    main()
