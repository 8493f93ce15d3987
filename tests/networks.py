"""Networks with the weights that `golden/make_networks.py` wrote, and the errors of what they give."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from artifex.generative_models.models.names import torch_weights

# Sums of at most some hundred float32 products a layer, in some twenty layers, over the output's deviation.
# An epsilon of 1e-5 for one of 1e-6 gives more, where normalisations have weights and what they see is faint.
TOLERANCE = 1e-4

UNIT = 64
FILE = Path(__file__).parent / "golden" / "networks.npz"


class Golden:
    """One of the networks.

    Args:
        family: `unet` or `dit`.
        name: As in the script.
    """

    def __init__(self, family: str, name: str):
        with np.load(FILE) as arrays:
            known = json.loads(arrays["known"].tobytes())[f"{family}/{name}"]
            mine = {kind: arrays[f"{family}/{name}/{kind}"] for kind in ("weights", "x", "time", "y")}
            label = arrays.get(f"{family}/{name}/label")
        self.arguments: dict[str, Any] = known["arguments"]
        self.config: dict[str, Any] = known["config"]  # the arguments with the defaults of diffusers
        self.shapes: dict[str, tuple[int, ...]] = known["shapes"]
        self.wanted = mine["y"]
        self.inputs = [_floats(mine["x"]), mine["time"], *([] if label is None else [label])]
        ends = np.cumsum([math.prod(shape) for shape in self.shapes.values()])
        parts = np.split(_floats(mine["weights"]), ends[:-1])
        self.weights = {
            name: part.reshape(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def model(self, cls: type[nnx.Module], dtype: Any = jnp.float32, **changes: Any) -> Any:
        """The network with its weights, and other arguments than it was made with if some are given."""
        made = abstract(cls, **self.arguments | changes)
        names = torch_weights(made)
        assert names.keys() == self.shapes.keys()
        state = {}
        for name, (path, axes) in names.items():
            values = self.weights[name] if axes is None else self.weights[name].transpose(axes)
            state[path] = nnx.Param(jax.device_put(values.astype(dtype)))
        graphdef, wanted = nnx.split(made)
        shapes = {path: leaf.shape for path, leaf in nnx.to_flat_state(wanted)}
        assert shapes == {path: leaf.shape for path, leaf in state.items()}
        return nnx.merge(graphdef, nnx.from_flat_state(state))

    def error(self, model: nnx.Module) -> float:
        """Largest error of any row, over the deviation of that row."""
        found = np.asarray(call(model, *self.inputs))
        assert found.shape == self.wanted.shape
        assert found.dtype == np.float32
        errors = np.abs(found - self.wanted).max((1, 2, 3)) / self.wanted.std((1, 2, 3))
        return float(errors.max())


class _OneKey:
    """Stands in for random number generators where no numbers are drawn: these take most of the time."""

    def __init__(self) -> None:
        self._key = jax.random.key(0)

    def params(self) -> jax.Array:
        return self._key


def abstract(cls: Any, **config: Any) -> Any:
    """A model without weights."""
    return nnx.eval_shape(lambda: cls(**config, rngs=_OneKey()))


@jax.jit
def call(model: Any, *inputs: jax.Array | None) -> jax.Array:
    return model(*inputs)


def names(family: str) -> list[str]:
    """Those of a family."""
    with np.load(FILE) as arrays:
        known = json.loads(arrays["known"].tobytes())
    return [key.partition("/")[2] for key in known if key.startswith(f"{family}/")]


def _floats(values: np.ndarray) -> np.ndarray:
    return (values / UNIT).astype(np.float32)
