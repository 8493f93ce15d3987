"""Writes `networks.npz`: tiny networks of diffusers with random weights, and what they give.

Run with diffusers 0.42 and PyTorch 2.13 installed: `python tests/golden/make_networks.py`. Weights and
pictures are int8 over 64, so that every dtype has them exactly and the file stays small. Scales and biases of
normalisations are random too, and the pictures faint: only then does a wrong epsilon show.
"""

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

UNIT = 64
ROWS = 2

SMALL = {
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [4, 8],
    "norm_num_groups": 2,
    "layers_per_block": 1,
}

# By name: the arguments, height and width of the pictures, times, and labels if any.
UNETS: dict[str, tuple[dict[str, Any], tuple[int, int], list[float], Any]] = {
    "defaults": (SMALL | {"layers_per_block": 2}, (4, 4), [999, 0.5], None),
    "ddpm": (
        SMALL
        | {
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
            "block_out_channels": [4, 4, 8],
            "downsample_padding": 0,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
            "norm_eps": 1e-6,
            "attention_head_dim": None,
        },
        (8, 12),
        [3, 700],
        None,
    ),
    "heads": (
        SMALL
        | {
            "down_block_types": ["AttnDownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D"],
            "attention_head_dim": 2,
            "act_fn": "gelu",
            "mid_block_scale_factor": 2**0.5,
            "center_input_sample": True,
        },
        (4, 6),
        [3, 700],
        None,
    ),
    "resnet": (
        SMALL
        | {
            "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["ResnetUpsampleBlock2D", "AttnUpBlock2D", "UpBlock2D"],
            "block_out_channels": [4, 4, 4],
            "downsample_type": "resnet",
            "upsample_type": "resnet",
            "resnet_time_scale_shift": "scale_shift",
            "attn_norm_num_groups": 4,
            "attention_head_dim": 2,
            "num_class_embeds": 5,
        },
        (8, 8),
        [3, 700],
        [4, 0],
    ),
    "scale_shift": (
        SMALL
        | {
            "block_out_channels": [4, 4],
            "resnet_time_scale_shift": "scale_shift",
            "class_embed_type": "timestep",
            "act_fn": "mish",
            "attention_head_dim": 4,
        },
        (4, 4),
        [3, 700],
        [20, 1],
    ),
    "fourier": (
        SMALL
        | {
            "down_block_types": ["DownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "UpBlock2D"],
            "block_out_channels": [4, 4],
            "time_embedding_type": "fourier",
            "time_embedding_dim": 6,
            "class_embed_type": "identity",
            "add_attention": False,
            "act_fn": "relu",
        },
        (4, 4),
        [0.5, 7],
        [[1, 0, -1, 0.5, 2, 0], [0, 1, 1, 0, 0, -1]],
    ),
    "learned": (
        {
            "in_channels": 1,
            "out_channels": 2,
            "down_block_types": ["AttnDownBlock2D"],
            "up_block_types": ["UpBlock2D"],
            "block_out_channels": [8],
            "norm_num_groups": 4,
            "layers_per_block": 1,
            "time_embedding_type": "learned",
            "time_embedding_dim": 4,
            "num_train_timesteps": 10,
            "mid_block_type": None,
        },
        (3, 5),
        [0, 9],
        None,
    ),
}
DITS: dict[str, tuple[dict[str, Any], tuple[int, int], list[float], Any]] = {
    "classes": (
        {
            "num_attention_heads": 2,
            "attention_head_dim": 4,
            "num_layers": 2,
            "sample_size": 8,
            "num_embeds_ada_norm": 5,
            "out_channels": 8,
        },
        (8, 8),
        [999, 0.5],
        [3, 5],
    ),
    "affine": (
        {
            "num_attention_heads": 1,
            "attention_head_dim": 8,
            "in_channels": 3,
            "num_layers": 1,
            "sample_size": 3,
            "patch_size": 1,
            "attention_bias": False,
            "activation_fn": "geglu",
            "num_embeds_ada_norm": 2,
            "norm_elementwise_affine": True,
            "norm_eps": 1e-3,
        },
        (4, 4),
        [3, 700],
        [2, 0],
    ),
}


def weight(name: str, shape: tuple[int, ...], random: np.random.RandomState) -> np.ndarray:
    """Such values as a trained network might have, in int8."""
    values = random.standard_normal(shape)
    if name == "time_proj.weight" or ("embedding" in name and "linear" not in name):
        values *= 0.5
    elif len(shape) > 1:
        values /= np.sqrt(np.prod(shape[1:]))
    elif name.endswith("bias"):
        values *= 0.2
    else:
        values = 1 + 0.3 * values
    if name.startswith("conv_in"):
        values *= 0.1
    return np.clip(np.round(values * UNIT), -127, 127).astype(np.int8)


def network(
    cls: Any, seed: int, config: dict[str, Any], size: tuple[int, int], times: list[float], labels: Any
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What is to be known of a network, and its arrays."""
    random = np.random.RandomState(seed)
    model = cls(**config).eval()
    shapes = {name: tuple(tensor.shape) for name, tensor in sorted(model.state_dict().items())}
    weights = {name: weight(name, shape, random) for name, shape in shapes.items()}
    model.load_state_dict({name: torch.tensor(values / UNIT).float() for name, values in weights.items()})

    x = np.round(random.standard_normal((ROWS, model.config.in_channels, *size)) * UNIT / 4).astype(np.int8)
    time = torch.tensor(times)
    if config.get("time_embedding_type") == "learned":
        time = time.long()
    label = None if labels is None else torch.tensor(labels)
    with torch.no_grad():
        y = model(torch.tensor(x / UNIT).float(), time, class_labels=label).sample
    arrays = {
        "weights": np.concatenate([values.ravel() for values in weights.values()]),
        "x": x.transpose(0, 2, 3, 1),
        "time": np.array(times, np.float32),
        "y": y.numpy().transpose(0, 2, 3, 1),
    }
    if label is not None:
        arrays["label"] = np.array(labels, np.float32 if label.is_floating_point() else np.int32)
    full = {name: value for name, value in model.config.items() if not name.startswith("_")}
    return {"arguments": config, "config": full, "shapes": shapes}, arrays


def main() -> None:
    torch.set_num_threads(1)
    known, arrays = {}, {}
    families = {"unet": (diffusers.UNet2DModel, UNETS), "dit": (diffusers.DiTTransformer2DModel, DITS)}
    for family, (cls, networks) in families.items():
        for seed, (name, case) in enumerate(networks.items()):
            key = f"{family}/{name}"
            known[key], mine = network(cls, seed, *case)
            arrays |= {f"{key}/{kind}": array for kind, array in mine.items()}
            print(f"{key:20} {len(mine['weights']):6} weights, output's std {mine['y'].std():.3f}")
    known_json = np.frombuffer(json.dumps(known).encode(), np.uint8)
    path = Path(__file__).with_name("networks.npz")
    np.savez_compressed(path, known=known_json, **arrays)
    print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
