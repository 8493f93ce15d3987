"""Saving and restoring a model's weights with Orbax.

A checkpoint written here is the step directory of an Orbax `CheckpointManager` with one item, `model`,
holding `nnx.state(model)`, and a CRC-32 of every array in the step's custom metadata: Orbax itself
returns flipped bits as weights. Keys of random number generators are stored as their words. What other
training loops write is read too: items of other names, a tree with the model under the key `model` (beside
an optimizer, which is not read), steps named `ckpt_30` or `00000030`, and the plain directories of a
`StandardCheckpointer` or of Orbax's `v1.save_pytree`, from `nnx.state(model)` or from its pure dict. The
state of random number generators need not be there.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence, Set
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx, traverse_util

from artifex.generative_models.core.casting import cast
from artifex.generative_models.core.devices import DeviceManager
from artifex.generative_models.core.directories import foreign_weights, local_path
from artifex.generative_models.core.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    InputError,
)
from artifex.generative_models.core.processes import whole
from artifex.generative_models.core.sharding import WeightLayout

if TYPE_CHECKING:
    from jax.typing import DTypeLike

_ITEM = "model"
_CHECKSUMS = "crc32"
_TREE_FILE = "_METADATA"  # Orbax's names: one a tree, one a step
_STEP_FILE = "_CHECKPOINT_METADATA"

_GROUP_BYTES = 128 << 20  # of arrays that are read, checked and cast at once
_REMOVALS, _REMOVAL_SECONDS = 100, 0.02  # tries, and the wait after each

_STEP_NAME = re.compile(r"(?:\D.*_)?(\d+)")  # of a directory, such as 30, 00000030 or ckpt_30

# What Orbax raises on damaged files. LookupError is KeyError and IndexError.
_DAMAGE = (ValueError, TypeError, LookupError, AttributeError, NotImplementedError, OSError)

_Path = tuple[str, ...]
M = TypeVar("M", bound=nnx.Module)


def setup_checkpoint_manager(
    checkpoint_dir: str | PathLike[str], *, max_to_keep: int | None = None, create: bool = True
) -> tuple[ocp.CheckpointManager, str]:
    """Opens a directory of checkpoints.

    Args:
        checkpoint_dir: The directory; `~` and relative paths are resolved.
        max_to_keep: Delete the oldest steps beyond this many; `None` keeps all.
        create: Make the directory if it is missing. False opens it for reading alone.

    Returns:
        The manager and the directory's absolute path.

    Raises:
        CheckpointNotFoundError: `create` is False and there is no such directory.
        InputError: It is an address, such as gs://bucket/checkpoints.
    """
    path = local_path(checkpoint_dir).absolute()
    if not create and not path.is_dir():
        found = foreign_weights(path) if path.is_file() else None
        raise CheckpointNotFoundError(
            f"no checkpoint directory at {path}{'' if found is None else f'; {found}'}"
        )
    options = ocp.CheckpointManagerOptions(
        max_to_keep=max_to_keep,
        create=create,
        enable_async_checkpointing=False,
        lightweight_initialize=True,  # else one damaged step keeps all the others from being loaded
    )
    return ocp.CheckpointManager(path, options=options), str(path)


def save_checkpoint(manager: ocp.CheckpointManager, model: nnx.Module, step: int) -> None:
    """Writes the model's weights as one step; returns when they are on disk.

    The step appears under its name only when it is whole: a process killed before that leaves the
    earlier steps as they were.

    Args:
        manager: From `setup_checkpoint_manager`.
        model: The model.
        step: Training step, from 0; one that is not there yet.

    Raises:
        CheckpointError: The step exists already, or cannot be written.
        OSError: The system refused.
    """
    if step in manager.all_steps():
        raise CheckpointError(f"step {step} is already in {manager.directory}; steps are never overwritten")
    state = jax.tree.map(_words, nnx.state(model))
    checksums = {_join(path): _crc32(leaf.get_raw_value()) for path, leaf in _variables(state).items()}
    try:
        manager.save(
            step,
            args=ocp.args.Composite(**{_ITEM: ocp.args.StandardSave(state)}),
            custom_metadata={_CHECKSUMS: checksums},
            force=True,
        )
        manager.wait_until_finished()
    except ValueError as error:  # which is what TensorStore makes of a full disk
        raise CheckpointError(f"cannot write step {step} in {manager.directory}: {error}") from error
    finally:
        for unfinished in Path(manager.directory).glob(f"{step}.orbax-checkpoint-tmp*"):
            _remove(unfinished)


def _remove(directory: Path) -> None:
    """Removes a directory into which threads of Orbax may write for a moment longer."""
    for _ in range(_REMOVALS):
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(_REMOVAL_SECONDS)


def load_checkpoint(
    manager: ocp.CheckpointManager,
    template: M,
    step: int | None = None,
    *,
    item: str | None = None,
    dtype: DTypeLike | None = None,
    sharding: jax.sharding.Sharding | WeightLayout | None = None,
) -> tuple[M, int | None]:
    """Restores a model, straight to where its weights will live.

    Args:
        manager: From `setup_checkpoint_manager`.
        template: A model of the same architecture. Its weights are not read, so
            `nnx.eval_shape(lambda: VAE(..., rngs=nnx.Rngs(0)))`, which has none, is the cheapest.
        step: Training step; `None` takes the latest.
        item: Name of the item that holds the model; `None` takes `model`, `default`, or the one that fits.
        dtype: Casts floating-point weights to this dtype on purpose. Without it a difference between
            the dtypes of checkpoint and template is an error.
        sharding: Where the weights go, all or each; `None` is the default device. Any number of devices
            will do, whatever number saved them; of several processes each reads its own part.

    Returns:
        The restored model and its step; `None` for a plain directory, which has no steps.

    Raises:
        CheckpointNotFoundError: There is no checkpoint, not that step, or no such item.
        CheckpointMismatchError: Structure, shapes or dtypes differ; the message lists every path.
        CheckpointCorruptError: The files cannot be read or fail their checksums.
        InputError: The sharding does not divide an array.
    """
    step_dir, step = _step_directory(Path(manager.directory), step)
    graphdef, abstract = nnx.split(template)
    variables = _variables(abstract)
    state = {path: variable.get_raw_value() for path, variable in variables.items()}
    random = {path for path, variable in variables.items() if isinstance(variable, nnx.RngState)}
    item_dir, saved, source = _matching(_items(step_dir, item), state, random, cast=dtype is not None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(DeviceManager().default_device)
    shardings = {
        path: _sharding_of(sharding, source[path], saved[source[path]], variables[path]) for path in source
    }
    checksums = {} if step is None else _checksums(step_dir)
    restored = {path: _fresh(state[path], sharding) for path in random - source.keys()}
    for group in _groups(source, saved):
        of_files = {source[path]: saved[source[path]] for path in group}
        arrays = _restore(item_dir, of_files, {source[path]: shardings[path] for path in group})
        _check_checksums(step_dir, checksums, {path: arrays[source[path]] for path in group})
        for path in group:
            array = arrays.pop(source[path])
            restored[path] = _as_stated(array, state[path], dtype)
    flat = [
        (path, variable.replace(restored[_names(path)])) for path, variable in nnx.to_flat_state(abstract)
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(flat)), step


def _step_directory(directory: Path, step: int | None) -> tuple[Path, int | None]:
    """Where a step is, or the directory itself where it has none."""
    steps: dict[int, Path] = {}
    for path in sorted(directory.iterdir(), key=lambda path: not path.name.isdecimal()):
        named = _STEP_NAME.fullmatch(path.name)
        if named and path.is_dir() and (path.name.isdecimal() or _items_in(path)):
            steps.setdefault(int(named[1]), path)  # a plain number goes before ckpt_30
    if not steps and step is None and _items_in(directory):
        return directory, None
    if not steps:
        raise CheckpointNotFoundError(f"no checkpoint in {directory}{_what_is_there(directory)}")
    step = max(steps) if step is None else step
    if step not in steps:
        raise CheckpointNotFoundError(f"no step {step} in {directory}; there are {_listing(sorted(steps))}")
    return steps[step], step


def _what_is_there(directory: Path) -> str:
    found = foreign_weights(directory)
    if found is not None:
        return f"; {found}"
    names = sorted(path.name for path in directory.iterdir())
    return f"; there are {_listing(names[:5])}" if names else ""


def _items_in(step_dir: Path) -> dict[str, Path]:
    """The trees in a step's directory by name; one that is the directory itself has none."""
    if (step_dir / _TREE_FILE).is_file():
        return {"": step_dir}
    return {path.name: path for path in sorted(step_dir.iterdir()) if (path / _TREE_FILE).is_file()}


def _items(step_dir: Path, item: str | None) -> list[Path]:
    """The trees that may be the model: those of the usual names, or else all."""
    items = _items_in(step_dir)
    if item is not None:
        if item not in items:
            raise CheckpointNotFoundError(
                f"no item {item!r} in {step_dir}; there are {_listing(list(items)) or 'none'}"
            )
        return [items[item]]
    if not items:
        names = sorted(path.name for path in step_dir.iterdir() if path.is_dir())
        raise CheckpointNotFoundError(
            f"step {step_dir.name} in {step_dir.parent} has no item '{_ITEM}'; "
            f"it has {_listing(names) or 'nothing'}"
        )
    usual = [items[name] for name in ("", _ITEM, "default") if name in items]
    return usual[:1] or list(items.values())


def _matching(
    items: Sequence[Path], state: Mapping[_Path, Any], random: Set[_Path], *, cast: bool
) -> tuple[Path, dict[_Path, Any], dict[_Path, _Path]]:
    """The one item that fits a model, what it holds, and the path in it of each of the model's."""
    fits, differences = [], []
    for item in items:
        saved = _saved_arrays(item)
        source = _match(state, saved)
        unread = {
            path for path in random & source.keys() if not _holds_words(state[path], saved[source[path]])
        }
        source = {path: found for path, found in source.items() if path not in unread}
        ignored = {path for path in saved if path in random or path[:-1] in random}
        try:
            _check_structure(state, saved, source, item, random=random, ignored=ignored, cast=cast)
        except CheckpointMismatchError as error:
            differences.append(error)
        else:
            fits.append((item, saved, source))
    if len(fits) == 1:
        return fits[0]
    if len(items) == 1:
        raise differences[0]
    names = _listing([item.name for item in items])
    which = _listing([item.name for item, *_ in fits]) or "none of them"
    raise CheckpointMismatchError(
        f"{items[0].parent} has the items {names}, of which {which} fits the model; name one: item= or --item"
    )


def _holds_words(key: Any, saved: Any) -> bool:
    """Whether what is saved are the words of a key, or the number of a count."""
    words = jax.eval_shape(jax.random.key_data, key) if _is_key(key) else key
    return tuple(saved.shape) == tuple(words.shape) and saved.dtype == words.dtype


def _groups(source: Mapping[_Path, _Path], saved: Mapping[_Path, Any]) -> Iterator[list[_Path]]:
    """Arrays to read at once: at most `_GROUP_BYTES` of them, as what is read is held twice and then cast."""
    group: list[_Path] = []
    size = 0
    for path, place in source.items():
        leaf = saved[place]
        num_bytes = math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
        if group and size + num_bytes > _GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(path)
        size += num_bytes
    if group:
        yield group


def _as_stated(array: jax.Array, wanted: Any, dtype: DTypeLike | None) -> jax.Array:
    """An array in the dtype that it is to have; a key, of its words."""
    if _is_key(wanted):
        return jax.random.wrap_key_data(array, impl=jax.random.key_impl(jnp.zeros((), wanted.dtype)))
    if dtype is None or not _is_floating(array.dtype):
        return array
    return jax.device_put(cast(array, dtype), array.sharding)


def _fresh(wanted: Any, sharding: jax.sharding.Sharding | WeightLayout) -> jax.Array:
    """State of a random number generator for which the checkpoint has none; evaluation does not read it."""
    place = sharding.sharding(wanted.shape, ()) if isinstance(sharding, WeightLayout) else sharding
    return jnp.zeros(wanted.shape, wanted.dtype, device=place)


def _saved_arrays(item_dir: Path) -> dict[_Path, Any]:
    """Shape and dtype of every array on disk, by path; of a training state the model's part alone."""
    try:
        metadata = ocp.PyTreeCheckpointHandler().metadata(item_dir)
    except _DAMAGE as error:
        raise CheckpointCorruptError(f"cannot read the checkpoint in {item_dir}: {error}") from error
    saved = _flat(metadata.tree)
    of_model = {path: leaf for path, leaf in saved.items() if path[0] == _ITEM}
    return of_model or saved


def _match(wanted: Mapping[_Path, Any], saved: Mapping[_Path, Any]) -> dict[_Path, _Path]:
    """Path in the checkpoint of each path of the template.

    `nnx.state` ends each path in `value` (the variable's own array), its pure dict does not; a whole
    training state has the model under `model`.
    """
    under_item = any(path[0] == _ITEM for path in saved) and not any(path[0] == _ITEM for path in wanted)
    prefix: _Path = (_ITEM,) if under_item else ()
    source = {}
    for path in wanted:
        for candidate in (prefix + path, (*prefix, *path, "value")):
            if candidate in saved:
                source[path] = candidate
    return source


def _check_structure(
    wanted: Mapping[_Path, Any],
    saved: Mapping[_Path, Any],
    source: Mapping[_Path, _Path],
    item_dir: Path,
    *,
    random: Set[_Path],
    ignored: Set[_Path],
    cast: bool,
) -> None:
    differences = []
    for path, leaf in wanted.items():
        if path in random:
            continue
        if path not in source:
            differences.append(f"{_join(path)}: model has {_describe(leaf)}, checkpoint has nothing")
            continue
        found = saved[source[path]]
        castable = cast and _is_floating(leaf.dtype) and _is_floating(found.dtype)
        if tuple(found.shape) != tuple(leaf.shape) or not (castable or found.dtype == leaf.dtype):
            differences.append(
                f"{_join(path)}: model has {_describe(leaf)}, checkpoint has {_describe(found)}"
            )
    for path in saved.keys() - set(source.values()) - ignored:
        differences.append(f"{_join(path)}: model has nothing, checkpoint has {_describe(saved[path])}")
    if differences:
        raise CheckpointMismatchError(
            f"the checkpoint in {item_dir} does not fit the model "
            "(pass the config it was trained with, or dtype= or --dtype to cast):\n  "
            + "\n  ".join(sorted(differences))
        )


def _sharding_of(
    sharding: jax.sharding.Sharding | WeightLayout, path: _Path, leaf: Any, variable: Any
) -> jax.sharding.Sharding:
    """Where one weight goes; its layer may name its axes."""
    if isinstance(sharding, WeightLayout):
        return sharding.sharding(leaf.shape, variable.get_metadata().get("out_sharding") or ())
    try:
        sharding.shard_shape(tuple(leaf.shape))
    except ValueError as error:
        raise InputError(f"sharding: does not divide {_join(path)}: {error}") from error
    return sharding


def _restore(
    item_dir: Path, saved: Mapping[_Path, Any], shardings: Mapping[_Path, jax.sharding.Sharding]
) -> dict[_Path, jax.Array]:
    target = traverse_util.unflatten_dict(
        {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[path])
            for path, leaf in saved.items()
        }
    )
    arguments = ocp.args.PyTreeRestore(
        item=target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=True,
    )
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            tree = checkpointer.restore(item_dir, args=arguments)
    except jax.errors.JaxRuntimeError:  # of the device, not of the files
        raise
    except Exception as error:  # which is what Orbax raises where an array cannot be read
        reason = error.__cause__ or error
        raise CheckpointCorruptError(f"cannot restore the checkpoint in {item_dir}: {reason}") from error
    return _flat(tree)


def _checksums(step_dir: Path) -> Mapping[str, int]:
    """The checksums of `save_checkpoint` by path; other writers leave none."""
    try:
        metadata = json.loads((step_dir / _STEP_FILE).read_bytes())
        return (metadata["custom_metadata"] or {}).get(_CHECKSUMS) or {}
    except _DAMAGE as error:
        raise CheckpointCorruptError(f"cannot read the metadata of {step_dir}: {error}") from error


def _check_checksums(
    step_dir: Path, expected: Mapping[str, int], restored: Mapping[_Path, jax.Array]
) -> None:
    if not expected:
        return
    found = {_join(path): _crc32(array) for path, array in restored.items()}
    broken = sorted(path for path, checksum in found.items() if expected.get(path) != checksum)
    if broken:
        raise CheckpointCorruptError(
            f"the checkpoint in {step_dir} is damaged: checksums differ for {_listing(broken)}"
        )


def _words(leaf: Any) -> Any:
    """An array, or the words of a key, which have a form on disk."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _variables(state: nnx.State) -> dict[_Path, Any]:
    return {_names(path): variable for path, variable in nnx.to_flat_state(state)}


def _names(path: tuple[Any, ...]) -> _Path:
    return tuple(str(part) for part in path)


def _flat(tree: Any) -> dict[_Path, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {tuple(jax.tree_util.keystr((key,), simple=True) for key in path): leaf for path, leaf in leaves}


def _crc32(array: jax.Array) -> int:
    return zlib.crc32(np.ascontiguousarray(whole(array)).reshape(-1).view(np.uint8).data)


def _is_floating(dtype: DTypeLike) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def _join(path: _Path) -> str:
    return "/".join(path)


def _describe(leaf: Any) -> str:
    return f"{tuple(leaf.shape)} {leaf.dtype.name}"


def _listing(values: list[Any]) -> str:
    return ", ".join(map(str, values))
