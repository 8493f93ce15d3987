"""Checkpoints as other training loops lay them out, and models that hold more than weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import orbax.checkpoint.experimental.v1 as ocp_v1
import pytest
from flax import nnx

from artifex.generative_models.core.checkpointing import (
    load_checkpoint,
    save_checkpoint,
    setup_checkpoint_manager,
)
from artifex.generative_models.core.errors import (
    CheckpointMismatchError,
    CheckpointNotFoundError,
    InputError,
)


class Layers(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(3, 2, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)


def make(seed: int = 0) -> Layers:
    return Layers(rngs=nnx.Rngs(params=seed, dropout=seed + 5))


def template() -> Layers:
    return nnx.eval_shape(lambda: make())


def load(directory: Path, **settings: Any) -> tuple[Layers, int | None]:
    with setup_checkpoint_manager(directory, create=False)[0] as manager:
        return load_checkpoint(manager, template(), **settings)


def assert_same_weights(found: Layers, wanted: Layers) -> None:
    for a, b in zip(*(jax.tree.leaves(nnx.state(m, nnx.Param)) for m in (found, wanted)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


def test_random_state_comes_back_with_the_weights(tmp_path: Path) -> None:
    model = make(3)
    model.dropout(jnp.ones(4))  # which counts
    with setup_checkpoint_manager(tmp_path / "steps")[0] as manager:
        save_checkpoint(manager, model, 1)
    found, _ = load(tmp_path / "steps")
    assert_same_weights(found, model)
    assert found.dropout.rngs.count[...] == 1
    assert found.dropout.rngs.key[...] == model.dropout.rngs.key[...]


def save_parameters(model: Layers, directory: Path) -> None:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory, nnx.state(model, nnx.Param))


def save_pure(model: Layers, directory: Path) -> None:
    ocp_v1.save(directory, nnx.to_pure_dict(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize("save", [save_parameters, save_pure])
def test_random_state_is_made_anew_where_there_is_none(
    tmp_path: Path, save: Callable[[Layers, Path], None]
) -> None:
    model = make(3)
    save(model, tmp_path / "weights")
    found, step = load(tmp_path / "weights")
    assert_same_weights(found, model)
    assert step is None
    assert found.dropout.rngs.count[...] == 0
    found.dropout(jnp.ones(4))  # training could go on


OPTIONS = {
    "30": {},
    "ckpt_30": {"step_prefix": "ckpt"},
    "00000030": {"step_format_fixed_length": 8},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_steps_by_any_name(tmp_path: Path, name: str) -> None:
    options = ocp.CheckpointManagerOptions(**OPTIONS[name])
    with ocp.CheckpointManager(tmp_path, options=options) as manager:
        for step in (4, 30):
            state = nnx.state(make(step), nnx.Param)
            manager.save(step, args=ocp.args.Composite(model=ocp.args.StandardSave(state)))
    assert (tmp_path / name).is_dir()
    found, step = load(tmp_path)
    assert step == 30
    assert_same_weights(found, make(30))
    assert_same_weights(load(tmp_path, step=4)[0], make(4))
    with pytest.raises(CheckpointNotFoundError, match=r"no step 5 in .*; there are 4, 30"):
        load(tmp_path, step=5)


def save_items(directory: Path, **items: Any) -> None:
    with ocp.CheckpointManager(directory) as manager:
        saved = {name: ocp.args.StandardSave(item) for name, item in items.items()}
        manager.save(7, args=ocp.args.Composite(**saved))


def test_the_item_that_fits_is_taken(tmp_path: Path) -> None:
    state = nnx.state(make(1), nnx.Param)
    save_items(tmp_path, state=state, opt_state={"count": jnp.zeros(())})
    assert_same_weights(load(tmp_path)[0], make(1))
    assert_same_weights(load(tmp_path, item="state")[0], make(1))
    with pytest.raises(CheckpointMismatchError, match="kernel"):
        load(tmp_path, item="opt_state")
    with pytest.raises(CheckpointNotFoundError, match=r"no item 'ema' in .*; there are opt_state, state"):
        load(tmp_path, item="ema")


def test_items_that_fit_both_are_named(tmp_path: Path) -> None:
    first, second = (nnx.state(make(seed), nnx.Param) for seed in (1, 2))
    save_items(tmp_path, state=first, ema=second)
    with pytest.raises(CheckpointMismatchError, match="the items ema, state, of which ema, state fits"):
        load(tmp_path)
    assert_same_weights(load(tmp_path, item="ema")[0], make(2))


def test_weights_are_read_in_the_dtype_that_they_will_have(tmp_path: Path) -> None:
    with setup_checkpoint_manager(tmp_path)[0] as manager:
        save_checkpoint(manager, make(2), 1)
    found, _ = load(tmp_path, dtype=jnp.bfloat16)
    assert found.linear.kernel[...].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found.linear.kernel[...], make(2).linear.kernel[...].astype(jnp.bfloat16))


FILES = {
    "checkpoint_100": (flax.serialization.msgpack_serialize({"w": np.ones(2)}), "Flax wrote as msgpack"),
    "model.safetensors": ((2).to_bytes(8, "little") + b"{}", "safetensors weights"),
    "pytorch_model.bin": (b"PK", "PyTorch weights"),
}


@pytest.mark.parametrize("name", FILES)
def test_weights_in_formats_of_others_are_told(tmp_path: Path, name: str) -> None:
    contents, words = FILES[name]
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(CheckpointNotFoundError, match=f"it holds .*{words} .*{name}"):
        load(tmp_path)


@pytest.mark.parametrize("address", ["gs://bucket/steps", "s3://bucket/steps", "hf:/somebody/model"])
def test_addresses_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="addresses are not read or written"):
        setup_checkpoint_manager(address)
    assert list(tmp_path.iterdir()) == []
