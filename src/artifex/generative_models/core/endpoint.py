"""What a model offers: named, batched, pure functions whose rows are independent.

The law that everything else rests on: output row *i* of an endpoint depends only on input row *i*
and on PRNG key *i*. It makes padding, splitting, merging and sharding of batches legal.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from flax import nnx
    from jax.typing import DTypeLike
    from jaxtyping import Array, Key, UInt32


@dataclass(frozen=True)
class TensorSpec:
    """One row of an input or output; the batch axis is left out.

    Args:
        shape: Shape of a row; `()` for a per-row scalar such as a temperature.
        dtype: The row's dtype.
        default: Value that fills the input when the caller leaves it out; only for per-row scalars.
        doc: One line for people: meaning, unit, range.
    """

    shape: tuple[int, ...]
    dtype: DTypeLike
    default: float | None = None
    doc: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype))


@dataclass(frozen=True)
class Endpoint:
    """A batched pure function of a model.

    Args:
        fn: `fn(model, keys, inputs, **options) -> outputs`: `keys` is a batch of PRNG keys, one a row;
            `inputs` and `outputs` are dicts of arrays with a leading batch axis.
        inputs: The inputs by name, one row each.
        options: Static arguments and their defaults. A new value compiles a new executable.
        doc: One line for people.
    """

    fn: Callable[..., dict[str, Array]]
    inputs: Mapping[str, TensorSpec]
    options: Mapping[str, Hashable] = field(default_factory=dict)
    doc: str = ""


@runtime_checkable
class Model(Protocol):
    """Anything that offers endpoints. `generate` is the one every family has."""

    def endpoints(self) -> Mapping[str, Endpoint]:
        """The endpoints by name."""
        ...


@runtime_checkable
class ExportableModel(Model, Protocol):
    """A model that an export directory can rebuild: its class takes `**config` and `rngs`."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The constructor's arguments besides `rngs`, as JSON takes them."""
        ...


def row_keys(keys: Key[Array, " batch"], rows: UInt32[Array, " batch"]) -> Key[Array, " batch"]:
    """Derives each row's key from its job's key: `fold_in(key, row)`.

    Sample number `row` of a job therefore has the same key in every batch, on every device and
    in every process.

    Args:
        keys: The key of the job that each row belongs to.
        rows: The row's number within its job, from 0.
    """
    return jax.vmap(jax.random.fold_in)(keys, rows)


def sample_key(rngs: nnx.Rngs | int) -> Key[Array, ""]:
    """The key of one sampling job.

    Args:
        rngs: Random number generators, of which one `sample` key is drawn, or an integer seed, which
            means a fresh `nnx.Rngs(seed)`.
    """
    if not isinstance(rngs, int):
        return rngs.sample()
    words = sample_key_data(rngs)
    return jax.random.wrap_key_data(jax.device_put(words), impl=_default_key_impl())


def sample_key_data(seed: int) -> UInt32[np.ndarray, " words"]:
    """The words of `sample_key(seed)`, on the host.

    Args:
        seed: An integer, as `nnx.Rngs` takes it.
    """
    if _default_key_impl() != "threefry2x32" or not 0 <= seed < 2**32:
        return np.asarray(jax.random.key_data(jax.random.fold_in(jax.random.key(seed), 0)))
    return np.asarray(_threefry2x32((0, seed), (0, 0)), np.uint32)


def sample_keys_data(seeds: Sequence[int]) -> UInt32[np.ndarray, "seeds words"]:
    """`sample_key_data` of many seeds, in little more time than that of a few takes.

    Args:
        seeds: Integers, as `nnx.Rngs` takes them.
    """
    if _default_key_impl() != "threefry2x32" or not 0 <= min(seeds) <= max(seeds) < 2**32:
        return np.stack([sample_key_data(seed) for seed in seeds])
    return np.stack(_threefry2x32((0, np.array(seeds, np.uint64)), (0, 0)), axis=-1).astype(np.uint32)


def _default_key_impl() -> str:
    # JAX gives its settings their attributes at run time; `config.values` makes a dict of all of them.
    impl: str = jax.config.jax_default_prng_impl  # type: ignore[attr-defined]
    return impl


def _threefry2x32(key: tuple[int, Any], counter: tuple[int, int]) -> tuple[Any, Any]:
    """The block cipher behind JAX's default keys, in Python: JAX would compile it, for a tenth of a second.

    Args:
        key: Two words; the second may be an array of uint64.
        counter: Two words.

    References:
        Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, 2011, section 3.3.
        https://doi.org/10.1145/2063384.2063405
    """
    mask = 2**32 - 1
    keys = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    x, y = (counter[0] + keys[0]) & mask, (counter[1] + keys[1]) & mask
    for i, rotations in enumerate(_ROTATIONS):
        for left, right in rotations:
            x = (x + y) & mask
            y = ((y << left) & mask | y >> right) ^ x
        x = (x + keys[(i + 1) % 3]) & mask
        y = (y + keys[(i + 2) % 3] + i + 1) & mask
    return x, y


_EVEN, _ODD = (tuple((left, 32 - left) for left in group) for group in ((13, 15, 26, 6), (17, 29, 16, 24)))
_ROTATIONS = (_EVEN, _ODD, _EVEN, _ODD, _EVEN)
