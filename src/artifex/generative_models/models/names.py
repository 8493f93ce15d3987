"""Where the weights of a network of diffusers go: its names, and the order of axes there.

Attributes of the families have the names that diffusers has, so that what differs is listed here: PyTorch
calls every leaf but a bias `weight`, has a linear layer's outputs before its inputs and a convolution's
kernel last, and a few layers are numbers in a list.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from flax import nnx

_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_LAYERS = {
    ".to_out.": ".to_out.0.",
    ".ff.proj_in.": ".ff.net.0.proj.",
    ".ff.proj_out.": ".ff.net.2.",
}
_OLD_LAYERS = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
_KERNEL_AXES = {2: (1, 0), 4: (2, 3, 1, 0)}  # by rank: linear layers and convolutions


class TorchWeight(NamedTuple):
    """What becomes of a weight of a PyTorch network.

    Args:
        path: Its place in the state of ours.
        axes: The order in which to take its axes; None for that which they have.
    """

    path: tuple[Any, ...]
    axes: tuple[int, ...] | None


def torch_names(model: nnx.Module) -> dict[str, TorchWeight]:
    """The weights of a network by the names that diffusers stores them under.

    Args:
        model: A `UNet` or a `DiT`; shapes without values are enough.
    """
    names = {}
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        *layers, kind = map(str, path)
        name = ".".join([*layers, _LEAVES.get(kind, kind)])
        axes = _KERNEL_AXES[leaf.ndim] if kind == "kernel" else None
        names[_replaced(name, _LAYERS)] = TorchWeight(path, axes)
    return names


def current_name(name: str) -> str:
    """The name that diffusers gives a weight now; files of early versions have others for attention."""
    return _replaced(name, _OLD_LAYERS)


def _replaced(name: str, replacements: dict[str, str]) -> str:
    for old, new in replacements.items():
        name = name.replace(old, new)
    return name
