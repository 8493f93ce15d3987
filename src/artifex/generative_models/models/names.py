"""The names of weights in PyTorch libraries, and the order of their axes there.

Attributes of the families have the names that diffusers has, so that what differs is listed here: PyTorch
calls every leaf but a bias `weight`, has a linear layer's outputs before its inputs and a convolution's
kernel last, and a few layers are numbers in a list.
"""

from __future__ import annotations

from collections.abc import Callable

from flax import nnx

from artifex.generative_models.core.published import PublishedWeight

_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_LAYERS = {
    ".to_out.": ".to_out.0.",
    ".ff.proj_in.": ".ff.net.0.proj.",
    ".ff.proj_out.": ".ff.net.2.",
}
_KERNEL_AXES = {2: (1, 0), 4: (2, 3, 1, 0)}  # by rank: linear layers and convolutions


def torch_weights(
    model: nnx.Module, renamed: Callable[[str], str] = lambda name: name
) -> dict[str, PublishedWeight]:
    """The weights of a network by the names that diffusers stores them under.

    Args:
        model: The network; shapes without values are enough.
        renamed: What a name becomes that differs in more than is listed here.
    """
    found = {}
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        *layers, kind = map(str, path)
        name = ".".join([*layers, _LEAVES.get(kind, kind)])
        for ours, theirs in _LAYERS.items():
            name = name.replace(ours, theirs)
        axes = _KERNEL_AXES[leaf.ndim] if kind == "kernel" else None
        found[renamed(name)] = PublishedWeight(path, axes)
    return found
