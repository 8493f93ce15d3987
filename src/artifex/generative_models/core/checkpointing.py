"""Saving and restoring a model's weights with Orbax.

A checkpoint written here is the step directory of an Orbax `CheckpointManager` with one item, `model`,
holding `nnx.state(model)`, and a CRC-32 of every array in the step's custom metadata: Orbax itself
returns flipped bits as weights. What other training loops write is read too: a manager's `default`
item, a tree with the model under the key `model` (beside an optimizer, which is not read), and the
plain directories of a `StandardCheckpointer`, from `nnx.state(model)` or from its pure dict.
"""

from __future__ import annotations

import json
import shutil
import time
import zlib
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx, traverse_util

from artifex.generative_models.core.devices import DeviceManager
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

_REMOVALS, _REMOVAL_SECONDS = 100, 0.02  # tries, and the wait after each

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
    """
    path = Path(checkpoint_dir).expanduser().resolve()
    if not create and not path.is_dir():
        raise CheckpointNotFoundError(f"no checkpoint directory at {path}")
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
    state = nnx.state(model)
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
    dtype: DTypeLike | None = None,
    sharding: jax.sharding.Sharding | WeightLayout | None = None,
) -> tuple[M, int | None]:
    """Restores a model, straight to where its weights will live.

    Args:
        manager: From `setup_checkpoint_manager`.
        template: A model of the same architecture. Its weights are not read, so
            `nnx.eval_shape(lambda: VAE(..., rngs=nnx.Rngs(0)))`, which has none, is the cheapest.
        step: Training step; `None` takes the latest.
        dtype: Casts floating-point weights to this dtype on purpose. Without it a difference between
            the dtypes of checkpoint and template is an error.
        sharding: Where the weights go, all or each; `None` is the default device. Any number of devices
            will do, whatever number saved them; of several processes each reads its own part.

    Returns:
        The restored model and its step; `None` for a plain directory, which has no steps.

    Raises:
        CheckpointNotFoundError: There is no checkpoint, or not that step.
        CheckpointMismatchError: Structure, shapes or dtypes differ; the message lists every path.
        CheckpointCorruptError: The files cannot be read or fail their checksums.
        InputError: The sharding does not divide an array.
    """
    item_dir, step = _locate(manager, step)
    saved = _saved_arrays(item_dir)
    graphdef, abstract = nnx.split(template)
    variables = _variables(abstract)
    wanted = {path: variable.get_raw_value() for path, variable in variables.items()}
    source = _match(wanted, saved)
    _check_structure(wanted, saved, source, item_dir, cast=dtype is not None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(DeviceManager().default_device)
    shardings = {
        source[path]: _sharding_of(sharding, source[path], saved[source[path]], variable)
        for path, variable in variables.items()
    }
    arrays = _restore(item_dir, {path: saved[path] for path in source.values()}, shardings)
    restored = {path: arrays[source[path]] for path in wanted}
    if step is not None:
        _check_checksums(Path(manager.directory) / str(step), restored)
    if dtype is not None:
        restored = {
            path: array.astype(dtype) if _is_floating(array.dtype) else array
            for path, array in restored.items()
        }
    state = nnx.from_flat_state(
        [(path, variable.replace(restored[_names(path)])) for path, variable in nnx.to_flat_state(abstract)]
    )
    return nnx.merge(graphdef, state), step


def _locate(manager: ocp.CheckpointManager, step: int | None) -> tuple[Path, int | None]:
    directory = Path(manager.directory)
    steps = sorted(manager.all_steps())
    if not steps and step is None and (directory / _TREE_FILE).is_file():
        return directory, None
    if not steps:
        raise CheckpointNotFoundError(f"no checkpoint in {directory}")
    step = steps[-1] if step is None else step
    if step not in steps:
        raise CheckpointNotFoundError(f"no step {step} in {directory}; there are {_listing(steps)}")
    step_dir = directory / str(step)
    for item_dir in (step_dir / _ITEM, step_dir / "default", step_dir):
        if (item_dir / _TREE_FILE).is_file():
            return item_dir, step
    items = sorted(path.name for path in step_dir.glob("*") if path.is_dir())
    raise CheckpointNotFoundError(
        f"step {step} in {directory} has no item '{_ITEM}'; it has {_listing(items) or 'nothing'}"
    )


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
    cast: bool,
) -> None:
    differences = []
    for path, leaf in wanted.items():
        if path not in source:
            differences.append(f"{_join(path)}: model has {_describe(leaf)}, checkpoint has nothing")
            continue
        found = saved[source[path]]
        castable = cast and _is_floating(leaf.dtype) and _is_floating(found.dtype)
        if tuple(found.shape) != tuple(leaf.shape) or not (castable or found.dtype == leaf.dtype):
            differences.append(
                f"{_join(path)}: model has {_describe(leaf)}, checkpoint has {_describe(found)}"
            )
    for path in saved.keys() - set(source.values()):
        differences.append(f"{_join(path)}: model has nothing, checkpoint has {_describe(saved[path])}")
    if differences:
        raise CheckpointMismatchError(
            f"the checkpoint in {item_dir} does not fit the model "
            "(pass the config it was trained with, or dtype= to cast):\n  " + "\n  ".join(sorted(differences))
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


def _check_checksums(step_dir: Path, restored: Mapping[_Path, jax.Array]) -> None:
    """Compares with the checksums of `save_checkpoint`; other writers leave none."""
    try:
        metadata = json.loads((step_dir / _STEP_FILE).read_bytes())
        expected = (metadata["custom_metadata"] or {}).get(_CHECKSUMS)
    except _DAMAGE as error:
        raise CheckpointCorruptError(f"cannot read the metadata of {step_dir}: {error}") from error
    if expected is None:
        return
    found = {_join(path): _crc32(array) for path, array in restored.items()}
    broken = sorted(path for path, checksum in found.items() if expected.get(path) != checksum)
    if broken:
        raise CheckpointCorruptError(
            f"the checkpoint in {step_dir} is damaged: checksums differ for {_listing(broken)}"
        )


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
    return f"{tuple(leaf.shape)} {np.dtype(leaf.dtype).name}"


def _listing(values: list[Any]) -> str:
    return ", ".join(map(str, values))
