import functools
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forked
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from shared import encode, randomised

from artifex.generative_models.core import DeviceManager, checkpointing
from artifex.generative_models.core.checkpointing import (
    load_checkpoint,
    save_checkpoint,
    setup_checkpoint_manager,
)
from artifex.generative_models.core.errors import (
    ArtifexError,
    CheckpointCorruptError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    InputError,
)
from artifex.generative_models.models.vae import VAE


def build(seed: int = 0, latent_dim: int = 4, encoder_features: tuple[int, ...] = (16,)) -> VAE:
    # Its largest kernel has 8 KiB: Orbax keeps arrays that size in files without a checksum.
    model = randomised(lambda: VAE((8, 8, 1), latent_dim, encoder_features, [4], rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    values = jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(seed), state)
    return nnx.merge(graphdef, jax.device_put(values))


@functools.cache
def template_parts() -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(abstract(build()))


def abstract(model: nnx.Module) -> nnx.Module:
    """A model without its weights."""
    return nnx.eval_shape(lambda: model)


def template() -> VAE:
    return nnx.merge(*template_parts())


def save(directory: Path, **models_by_step: VAE) -> None:
    with setup_checkpoint_manager(directory)[0] as manager:
        for step, model in models_by_step.items():
            save_checkpoint(manager, model, int(step.removeprefix("step")))


def load(directory: Path, model: nnx.Module, **kwargs: Any) -> tuple[Any, int | None]:
    with setup_checkpoint_manager(directory, create=False)[0] as manager:
        return load_checkpoint(manager, model, **kwargs)


def facts(model: nnx.Module) -> dict[str, str]:
    flat = nnx.to_flat_state(nnx.state(model))
    return {"/".join(map(str, path)): f"{leaf.shape} {leaf.dtype}" for path, leaf in flat}


def same_bits(a: nnx.Module, b: nnx.Module) -> bool:
    leaves, others = jax.tree.leaves(nnx.state(a)), jax.tree.leaves(nnx.state(b))
    return facts(a) == facts(b) and all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in zip(leaves, others, strict=True)
    )


def in_dtype(model: VAE, dtype: Any) -> VAE:
    graphdef, state = nnx.split(model)
    values = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), state)
    return nnx.merge(graphdef, jax.device_put(values))


@pytest.fixture(scope="module")
def model() -> VAE:
    return build(seed=1)


@pytest.fixture(scope="module")
def layer() -> nnx.Linear:
    """As few arrays as tests need that load often: one of 8 KiB and a small one."""
    return randomised(lambda: nnx.Linear(64, 32, rngs=nnx.Rngs(0)))


def test_a_restored_model_has_the_same_bits_and_the_same_outputs(
    tmp_path: Path, model: VAE, pictures: np.ndarray
) -> None:
    save(tmp_path, step7=model)
    restored, step = load(tmp_path, template())
    x = pictures[:3, 10:18, 10:18]
    assert step == 7
    assert same_bits(restored, model)
    for name, value in encode(model, x).items():
        np.testing.assert_array_equal(encode(restored, x)[name], value)


def test_the_template_may_have_weights_and_keeps_them(tmp_path: Path, model: VAE) -> None:
    save(tmp_path, step0=model)
    other = build(seed=2)
    assert same_bits(load(tmp_path, other)[0], model)
    assert same_bits(other, build(seed=2))


def test_steps(tmp_path: Path, model: VAE) -> None:
    save(tmp_path, step2=build(seed=2), step10=model, step9=build(seed=9))
    assert load(tmp_path, template())[1] == 10
    for step, seed in ((2, 2), (10, 1), (9, 9)):
        restored, found = load(tmp_path, template(), step=step)
        assert found == step
        assert same_bits(restored, build(seed=seed))
    with pytest.raises(CheckpointNotFoundError, match=r"no step 3 in .*; there are 2, 9, 10"):
        load(tmp_path, template(), step=3)


def test_a_step_is_never_overwritten(tmp_path: Path, model: VAE) -> None:
    save(tmp_path, step1=model)
    with pytest.raises(CheckpointError, match="step 1 is already in"):
        save(tmp_path, step1=build(seed=2))
    assert same_bits(load(tmp_path, template())[0], model)


def test_max_to_keep_deletes_the_oldest_steps(tmp_path: Path, model: VAE) -> None:
    for step in range(4):
        with setup_checkpoint_manager(tmp_path, max_to_keep=2)[0] as manager:
            save_checkpoint(manager, model, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint directory at"):
        setup_checkpoint_manager(tmp_path / "missing", create=False)
    assert not (tmp_path / "missing").exists()
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint directory at"):
        setup_checkpoint_manager(tmp_path / "file", create=False)
    (tmp_path / "empty" / "notes").mkdir(parents=True)
    for step in (None, 3):
        with pytest.raises(CheckpointNotFoundError, match="no checkpoint in"):
            load(tmp_path / "empty", template(), step=step)
    (tmp_path / "steps" / "4" / "optimizer").mkdir(parents=True)
    with pytest.raises(CheckpointNotFoundError, match=r"step 4 in .* has no item 'model'; it has optimizer"):
        load(tmp_path / "steps", template())


def test_relative_and_home_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: VAE) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    save(Path("steps"), step0=model)
    for directory in (Path("steps"), "~/steps", tmp_path / "steps"):
        manager, path = setup_checkpoint_manager(directory, create=False)
        with manager:
            assert path == str(tmp_path.resolve() / "steps")
            assert same_bits(load_checkpoint(manager, template())[0], model)


def test_loading_leaves_the_directory_as_it_was(tmp_path: Path, model: VAE) -> None:
    save(tmp_path, step0=model)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    load(tmp_path, template())
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(("saved", "wanted"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_dtype_casts_on_purpose_only(tmp_path: Path, model: VAE, saved: str, wanted: str) -> None:
    save(tmp_path, step0=in_dtype(model, saved))
    restored, _ = load(tmp_path, template(), dtype=wanted)
    assert same_bits(restored, in_dtype(in_dtype(model, saved), wanted))
    other = abstract(in_dtype(build(), wanted))
    with pytest.raises(CheckpointMismatchError) as error:
        load(tmp_path, other)
    assert str(error.value).splitlines()[1:] == [
        f"  {path}: model has {fact}, checkpoint has {fact.replace(wanted, saved)}"
        for path, fact in sorted(facts(other).items())
    ]


def test_what_is_cast_is_read_in_small_groups(
    tmp_path: Path, model: VAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, step1=model)
    read: list[int] = []
    restore = checkpointing._restore

    def restoring(item_dir: Path, saved: Any, shardings: Any) -> Any:
        arrays = restore(item_dir, saved, shardings)
        read.append(sum(array.nbytes for array in arrays.values()))
        return arrays

    monkeypatch.setattr(checkpointing, "_restore", restoring)
    monkeypatch.setattr(checkpointing, "_GROUP_BYTES", 2000)
    restored, _ = load(tmp_path, template(), dtype=jnp.bfloat16)
    assert same_bits(restored, in_dtype(model, jnp.bfloat16))
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model))]
    assert sum(read) == sum(sizes)
    assert max(read) <= max(2000, *sizes)
    assert len(read) < len(sizes)


def test_dtype_leaves_integers_alone(tmp_path: Path) -> None:
    class Counted(nnx.Module):
        def __init__(self) -> None:
            self.scale = nnx.Param(jnp.full(3, 1.1))
            self.count = nnx.Variable(jnp.arange(3))

    save(tmp_path, step0=Counted())
    restored, _ = load(tmp_path, nnx.eval_shape(Counted), dtype=jnp.float16)
    assert facts(restored) == {"scale": "(3,) float16", "count": "(3,) int32"}
    np.testing.assert_array_equal(restored.count, np.arange(3))


def test_a_mismatch_lists_every_path(tmp_path: Path) -> None:
    other = build(latent_dim=6, encoder_features=(16, 8))
    other.decoder.ups[0].conv.bias = nnx.Param(jnp.zeros(4, jnp.bfloat16))
    save(tmp_path, step0=other)
    with pytest.raises(CheckpointMismatchError) as error:
        load(tmp_path, template())
    assert str(error.value).splitlines()[1:] == [
        "  decoder/stem/kernel: model has (4, 64) float32, checkpoint has (6, 64) float32",
        "  decoder/ups/0/conv/bias: model has (4,) float32, checkpoint has (4,) bfloat16",
        "  encoder/convs/1/bias/value: model has nothing, checkpoint has (8,) float32",
        "  encoder/convs/1/kernel/value: model has nothing, checkpoint has (2, 2, 16, 8) float32",
        "  encoder/head/bias: model has (8,) float32, checkpoint has (12,) float32",
        "  encoder/head/kernel: model has (256, 8) float32, checkpoint has (32, 12) float32",
    ]
    save(tmp_path, step1=build())
    with pytest.raises(CheckpointMismatchError, match=r"convs/1/bias: model has \(8,\) .* has nothing"):
        load(tmp_path, other)


ON_EIGHT_DEVICES = """
import sys, jax, numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from artifex.generative_models.core import DeviceManager
from artifex.generative_models.core.checkpointing import *

source, target = sys.argv[1:]
rows = NamedSharding(DeviceManager().mesh(8), PartitionSpec("data"))
template = nnx.eval_shape(lambda: nnx.Linear(8, 16, rngs=nnx.Rngs(0)))
with setup_checkpoint_manager(source, create=False)[0] as manager:
    layer, _ = load_checkpoint(manager, template, sharding=rows)
assert layer.kernel.sharding == rows, layer.kernel.sharding
assert [shard.data.shape for shard in layer.kernel.addressable_shards] == [(1, 16)] * 8
nnx.update(layer, jax.tree.map(lambda x: x + 1, nnx.state(layer)))
assert len(layer.kernel.sharding.device_set) == 8
with setup_checkpoint_manager(target)[0] as manager:
    save_checkpoint(manager, layer, 0)
"""


def test_one_device_to_eight_and_back(tmp_path: Path) -> None:
    layer = nnx.Linear(8, 16, rngs=nnx.Rngs(0))
    source, target = tmp_path / "one", tmp_path / "eight"
    save(source, step0=layer)
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags}
    forked.run(["-c", ON_EIGHT_DEVICES, source, target], env=environment, check=True)
    abstract = nnx.eval_shape(lambda: nnx.Linear(8, 16, rngs=nnx.Rngs(0)))
    expected = jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(1), nnx.state(layer))
    two = NamedSharding(DeviceManager().mesh(2), PartitionSpec())
    for sharding in (None, two):
        restored, _ = load(target, abstract, sharding=sharding)
        jax.tree.map(np.testing.assert_array_equal, nnx.state(restored), expected)
        placed = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
        assert {leaf.sharding for leaf in jax.tree.leaves(nnx.state(restored))} == {placed}


def test_a_sharding_that_does_not_divide_is_no_damage(tmp_path: Path) -> None:
    layer = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    save(tmp_path, step0=layer)
    rows = NamedSharding(DeviceManager().mesh(2), PartitionSpec("data"))
    with pytest.raises(InputError, match=r"sharding: does not divide kernel/value: .*dimension size is 3"):
        load(tmp_path, layer, sharding=rows)


def training_state(model: nnx.Module) -> dict[str, Any]:
    return {"model": nnx.state(model), "optimizer": optax.adam(1e-3).init(nnx.state(model, nnx.Param))}


def by_manager(**items: Callable[[nnx.Module], Any]) -> Callable[[Path, nnx.Module], None]:
    def write(directory: Path, model: nnx.Module) -> None:
        saves = {name: ocp.args.StandardSave(item(model)) for name, item in items.items()}
        with ocp.CheckpointManager(directory) as manager:
            manager.save(5, args=saves.get("default") or ocp.args.Composite(**saves))
            manager.wait_until_finished()

    return write


def plain(item: Callable[[nnx.Module], Any]) -> Callable[[Path, nnx.Module], None]:
    def write(directory: Path, model: nnx.Module) -> None:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(directory, item(model))
            checkpointer.wait_until_finished()

    return write


def pure(model: nnx.Module) -> dict[str, Any]:
    return nnx.to_pure_dict(nnx.state(model))


LAYOUTS = {
    "item model": (by_manager(model=nnx.state), 5),
    "items model, optimizer": (
        by_manager(model=nnx.state, optimizer=lambda m: training_state(m)["optimizer"]),
        5,
    ),
    "default item": (by_manager(default=nnx.state), 5),
    "default item, pure": (by_manager(default=pure), 5),
    "default item, training state": (by_manager(default=training_state), 5),
    "plain": (plain(nnx.state), None),
    "plain, pure": (plain(pure), None),
    "plain, training state": (plain(training_state), None),
}


@pytest.fixture(params=LAYOUTS)
def foreign(request: pytest.FixtureRequest, tmp_path: Path, model: VAE) -> tuple[Path, int | None]:
    """What other training loops wrote: the directory and the step expected."""
    write, step = LAYOUTS[request.param]
    write(tmp_path / "foreign", model)
    return tmp_path / "foreign", step


def test_layouts_of_other_writers(foreign: tuple[Path, int | None], model: VAE) -> None:
    directory, step = foreign
    restored, found = load(directory, template())
    assert found == step
    assert same_bits(restored, model)
    with pytest.raises(CheckpointMismatchError, match=r"encoder/head/bias: model has \(10,\)"):
        load(directory, abstract(build(latent_dim=5)))


def test_the_optimizer_is_not_read(tmp_path: Path, model: VAE) -> None:
    noise = np.random.default_rng(0).normal(size=1 << 20).astype(np.float32)
    by_manager(default=lambda m: {"model": nnx.state(m), "optimizer": {"momentum": noise}})(tmp_path, model)
    before = bytes_read()
    restored, _ = load(tmp_path, template())
    assert same_bits(restored, model)
    assert 0 < bytes_read() - before < noise.nbytes / 8


def bytes_read() -> int:
    [metric] = ts.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
    return metric["values"][0]["value"]


# Orbax leaves other reads of the same checkpoint to the garbage collector when one has failed.
abandons_reads = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def damaged(data: bytes, num_flips: int) -> Iterator[tuple[str, bytes | None]]:
    """A file's contents gone, truncated, and with one bit flipped at several places."""
    yield "deleted", None
    for size in {0, len(data) // 2, len(data) - 1}:
        yield f"cut to {size}", data[:size]
    for at in {(len(data) - 1) * part // num_flips for part in range(num_flips)}:
        yield f"bit {at % 8} of byte {at} flipped", flipped(data, at)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]


def outcome(directory: Path, model: nnx.Module, step: int | None) -> str:
    try:
        restored, found = load(directory, abstract(model))
    except ArtifexError as error:
        return type(error).__name__
    except Exception as error:  # one that is not Artifex's is what the test is after: told by name, it fails
        return f"foreign {error!r}"
    return "right" if same_bits(restored, model) and found == step else "wrong"


def outcomes(directory: Path, model: nnx.Module, step: int | None, num_flips: int) -> dict[str, list[str]]:
    """What loading comes to, and by which damage."""
    found: dict[str, list[str]] = {}
    for path in [path for path in directory.rglob("*") if path.is_file()]:
        data = path.read_bytes()
        for damage, content in damaged(data, num_flips):
            path.unlink() if content is None else path.write_bytes(content)
            case = f"{path.relative_to(directory)} {damage}"
            found.setdefault(outcome(directory, model, step), []).append(case)
        path.write_bytes(data)
    gc.collect()
    return found


ERRORS = {"CheckpointCorruptError", "CheckpointMismatchError", "CheckpointNotFoundError"}


@abandons_reads
def test_damage_of_any_file_gives_an_error_or_the_right_weights(tmp_path: Path, layer: nnx.Linear) -> None:
    save(tmp_path, step3=layer)
    found = outcomes(tmp_path, layer, 3, num_flips=6)
    assert {name: cases for name, cases in found.items() if name not in ERRORS | {"right"}} == {}
    assert len(found["CheckpointCorruptError"]) > 30


@pytest.mark.parametrize("layout", ["default item, training state", "plain"])
@abandons_reads
def test_truncated_files_of_other_writers_give_an_error_or_the_right_weights(
    layout: str, tmp_path: Path, layer: nnx.Linear
) -> None:
    write, step = LAYOUTS[layout]
    write(tmp_path / "foreign", layer)
    found = outcomes(tmp_path / "foreign", layer, step, num_flips=0)
    assert {name: cases for name, cases in found.items() if name not in ERRORS | {"right"}} == {}
    assert found["CheckpointCorruptError"]


@abandons_reads
def test_checksums_catch_what_orbax_returns(tmp_path: Path, model: VAE) -> None:
    save(tmp_path, step3=model)
    state = nnx.state(model)
    largest = max(tmp_path.rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    data = largest.read_bytes()
    silent = 0
    for at in range(len(data) // 4, len(data), len(data) // 16):
        largest.write_bytes(flipped(data, at))
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                orbax = checkpointer.restore(tmp_path / "3" / "model", state)
        except Exception:  # Orbax noticed; the test is about what it does not notice, and needs some
            continue
        if not all(jax.tree.leaves(jax.tree.map(np.array_equal, orbax, state))):
            silent += 1
            with pytest.raises(CheckpointCorruptError, match=r"checksums differ for .*kernel"):
                load(tmp_path, template())
    gc.collect()
    assert silent


def test_a_damaged_step_leaves_the_others_alone(tmp_path: Path, model: VAE) -> None:
    save(tmp_path, step1=model, step2=build(seed=2))
    metadata = tmp_path / "2" / "_CHECKPOINT_METADATA"
    metadata.write_bytes(metadata.read_bytes().replace(b"performance", b"perfermance"))
    assert same_bits(load(tmp_path, template(), step=1)[0], model)
    save(tmp_path, step3=build(seed=3))
    assert load(tmp_path, template())[1] == 3
