import dataclasses
import json
import os
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from denoisers import denoiser
from flax import nnx
from shared import collector_off, randomised

from artifex.generative_models.core import Endpoint, TensorSpec
from artifex.generative_models.core.fields import checked_fields
from artifex.generative_models.core.sampling.denoising import Denoising
from artifex.generative_models.inference import Executor, InferencePipeline, cache, export_model
from artifex.generative_models.inference.executor.kept import described_spec, spec_of
from artifex.generative_models.inference.formats import fingerprint as looks
from artifex.generative_models.inference.formats import warm_start as snapshots
from artifex.generative_models.inference.formats.found import Found
from artifex.generative_models.inference.formats.loading import load_exported_model
from artifex.generative_models.inference.formats.warm_start import Snapshot
from artifex.generative_models.inference.pipeline import load_pipeline
from artifex.generative_models.models.vae import VAE

pytestmark = pytest.mark.usefixtures("compiles_anew")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory."""
    monkeypatch.setenv("ARTIFEX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(looks, "_STARTED", 2**63)  # an editor may save a source while tests run
    return tmp_path / "cache"


def tiny() -> VAE:
    return randomised(lambda: VAE((8, 8, 1), 4, [4], [4], rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    return export_model(tiny(), path, step=3, training_steps=5, final_loss=1.5)


@pytest.fixture
def export(root: Path, made: Path, tmp_path: Path) -> Path:
    """An export of an untrained model, to damage at will."""
    return Path(shutil.copytree(made, tmp_path / "tiny"))


def generate(pipeline: InferencePipeline) -> np.ndarray:
    return np.asarray(pipeline.generate(3, rngs=nnx.Rngs(7)))


def start(export: Path) -> tuple[np.ndarray, InferencePipeline]:
    """What a start gives that compiles one batch size of one endpoint."""
    with mock.patch.object(Found, "load", autospec=True, side_effect=Found.load) as restore:
        pipeline = load_pipeline(export, batch_size=4)
    pipeline.metadata["built here"] = restore.called
    return generate(pipeline), pipeline


def was_built(pipeline: InferencePipeline) -> bool:
    return pipeline.metadata["built here"]


def test_a_second_start_gives_the_same_and_builds_traces_and_compiles_nothing(
    export: Path, monkeypatch: pytest.MonkeyPatch
):
    first, pipeline = start(export)
    assert was_built(pipeline)
    assert pipeline.executor.compile_count == 1

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("a second start does not do this")

    monkeypatch.setattr(snapshots, "abstract_model", never)
    monkeypatch.setattr(Found, "load", never)
    second, pipeline = start(export)
    assert not was_built(pipeline)
    assert pipeline.executor.compile_count == 0
    np.testing.assert_array_equal(second, first)


def test_what_is_not_kept_is_traced_after_all_and_kept_then(export: Path, digits: np.ndarray):
    _, built = start(export)
    _, restored = start(export)
    pictures = np.ascontiguousarray(digits[:4, 10:18, 10:18])
    np.testing.assert_array_equal(restored.encode(pictures), built.encode(pictures))
    assert restored.executor.compile_count == 1
    _, again = start(export)
    np.testing.assert_array_equal(again.encode(pictures), built.encode(pictures))
    np.testing.assert_array_equal(again.reconstruct(pictures), built.reconstruct(pictures))
    assert again.executor.compile_count == 1


def test_specs_costs_and_tuning_results_are_those_of_the_model(export: Path):
    (_, built), (_, restored) = start(export), start(export)
    assert not was_built(restored)
    for name, endpoint in built.executor.endpoints.items():
        found = restored.executor.endpoints[name]
        assert dataclasses.replace(found, fn=endpoint.fn) == endpoint
        assert restored.executor.spec(name) == built.executor.spec(name)
        assert restored.executor.tuning_name(name) == built.executor.tuning_name(name)
    assert restored.executor.num_parameters == built.executor.num_parameters
    assert restored.executor.cost("generate", 4).memory_bytes > 0


def test_endpoints_have_no_more_than_a_snapshot_keeps():
    kept = {"fn", "inputs", "options", "doc", "says", "ahead", "requires"}
    assert {field.name for field in dataclasses.fields(Endpoint)} == kept
    kept = {"shape", "dtype", "default", "doc", "image_range", "minimum", "maximum"}
    assert {field.name for field in dataclasses.fields(TensorSpec)} == kept
    picture = TensorSpec((4, 4, 1), jnp.bfloat16, 1.0, "a picture", (-1.0, 1.0))
    for spec in (picture, TensorSpec((), jnp.int32, minimum=-3, maximum=5)):
        assert spec_of(json.loads(json.dumps(described_spec(spec)))) == spec


@pytest.fixture(scope="module")
def made_denoiser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(denoiser(), tmp_path_factory.mktemp("models") / "denoiser", step=3)


@pytest.fixture
def drawer(root: Path, made_denoiser: Path, tmp_path: Path) -> Path:
    """An export of a model that takes steps."""
    return Path(shutil.copytree(made_denoiser, tmp_path / "denoiser"))


def rows_of(executor: Executor) -> dict[str, Any]:
    said = executor.endpoints["generate"].says
    values = checked_fields("generate", said.fields, {"num_steps": [3, 5], "label": [1, 2]}, 2)
    return said.rows(values, 2, said.options(values))


def looks_of(executor: Executor) -> list[np.ndarray]:
    key = jax.random.key(1)
    return [look.outputs["x"] for look in executor.iterate("generate", rows_of(executor), key=key, every=2)]


def test_a_start_from_what_was_kept_traces_what_was_not_and_the_next_has_no_need_of_the_model(
    drawer: Path, monkeypatch: pytest.MonkeyPatch
):
    said = {"label": [0, 1], "num_steps": 2, "sampler": ["ddim", "heun"]}
    longer = {"num_steps": 70, "sampler": "ddim"}
    first = load_pipeline(drawer, batch_size=2)
    wanted = first.generate(2, rngs=7, **said)
    second = load_pipeline(drawer, batch_size=2)
    np.testing.assert_array_equal(second.generate(2, rngs=7, **said), wanted)
    assert second.executor.compile_count == 0
    np.testing.assert_array_equal(second.generate(2, rngs=7, **longer), first.generate(2, rngs=7, **longer))
    assert second.executor.compile_count == 1
    looks = looks_of(second.executor)
    assert second.executor.compile_count == 1 + 3  # a loop in parts is three
    final = first.executor("generate", rows_of(first.executor), key=jax.random.key(1))["x"]
    np.testing.assert_allclose(looks[-1], final, rtol=1e-5, atol=1e-6)
    leaf = second.model.network.proj_out_2.bias
    leaf[...] = leaf[...] + 1
    assert (second.generate(2, rngs=7, **said) != wanted).any()

    for owner, name in ((snapshots, "abstract_model"), (Found, "load")):
        monkeypatch.setattr(owner, name, mock.Mock(side_effect=AssertionError("a later start does it not")))
    third = load_pipeline(drawer, batch_size=2)
    assert third.executor.endpoints["generate"].says == first.executor.endpoints["generate"].says
    np.testing.assert_array_equal(third.generate(2, rngs=7, **said), wanted)
    np.testing.assert_array_equal(looks_of(third.executor), looks)
    assert third.executor.compile_count == 0
    catalog = third.executor._catalog
    (size,) = third.executor.batch_sizes_for("generate", 2)
    memory = catalog.part(catalog.find("generate", {}), size, "steps").memory_analysis()
    assert memory.alias_size_in_bytes >= size * (4 * 4 * 4 * 4 + 4)  # the state is held once here too
    names = first.executor.tuning_name("generate"), third.executor.tuning_name("generate")
    assert names[0] == names[1]


@dataclasses.dataclass(frozen=True)
class _Foreign(Denoising):
    """Of a module that is of no installed package."""


@pytest.mark.parametrize("case", ["foreign", "not JSON", "as JSON has it"])
def test_what_callers_say_is_kept_where_it_is_installed(case: str):
    scheduler = json.dumps({"_class_name": "DDIMScheduler"})
    says: Any = Denoising(scheduler, num_labels=3)
    if case == "foreign":
        says = _Foreign(scheduler)
    elif case == "not JSON":
        says = Denoising(scheduler, num_steps=np.int64(3))
    kept = snapshots._described_preparation(says)
    assert (kept is None) == (case != "as JSON has it")
    if kept is not None:
        assert snapshots._preparation(json.loads(json.dumps(kept))) == says
        assert snapshots._preparation({**kept, "module": "json", "qualname": "JSONDecoder"}) is None
        assert snapshots._preparation({**kept, "qualname": "json"}) is None


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_both_kinds_of_start_give_a_model_whose_changes_are_seen(export: Path, dtype: str | None):
    for _ in range(2):  # restored, then from what was kept
        pipeline = load_pipeline(export, batch_size=4, dtype=dtype)
        z = np.ones((4, 4), np.float32)
        before = pipeline.executor("decode", {"z": z})["x"]
        assert isinstance(pipeline.model, VAE)
        assert pipeline.model is pipeline.model
        np.testing.assert_array_equal(pipeline.executor("decode", {"z": z})["x"], before)
        bias = pipeline.model.decoder.stem.bias
        assert bias.dtype == (dtype or jnp.float32)
        bias[...] = bias[...] + 1
        after = pipeline.executor("decode", {"z": z})["x"]
        assert (np.asarray(after) != np.asarray(before)).any()


def test_a_model_that_is_built_late_has_the_weights_of_a_swap(export: Path):
    start(export)
    pipeline = load_pipeline(export, batch_size=4)
    pipeline.executor.swap([leaf + 1 for leaf in pipeline.executor.weights])
    z = np.ones((4, 4), np.float32)
    swapped = pipeline.executor("decode", {"z": z})["x"]
    np.testing.assert_allclose(Executor(pipeline.model)("decode", {"z": z})["x"], swapped, rtol=1e-5)
    np.testing.assert_array_equal(pipeline.executor("decode", {"z": z})["x"], swapped)


def test_a_first_start_does_not_read_back_what_it_keeps(export: Path):
    with mock.patch.object(snapshots, "read_part", side_effect=AssertionError("read back")):
        start(export)


def touch_the_checkpoint(export: Path, patch: pytest.MonkeyPatch) -> None:
    files = [path for path in (export / "checkpoints").rglob("*") if path.is_file()]
    os.utime(files[0])


def add_a_file(export: Path, patch: pytest.MonkeyPatch) -> None:
    (export / "checkpoints" / "3" / "new").touch()


def touch_the_config(export: Path, patch: pytest.MonkeyPatch) -> None:
    (export / "config.json").write_text((export / "config.json").read_text())


def touch_a_source(export: Path, patch: pytest.MonkeyPatch) -> None:
    os.utime(export.parent / "source.py", (1, 1))


def remove_a_source(export: Path, patch: pytest.MonkeyPatch) -> None:
    (export.parent / "source.py").unlink()


def set_a_variable(export: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("XLA_SOMETHING", "1")


def change_a_setting(export: Path, patch: pytest.MonkeyPatch) -> None:
    jax.config.update("jax_default_matmul_precision", "highest")


def move_to_another_cpu(export: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(looks, "_cpu", lambda: "flags: fpu")


def update_a_library(export: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("jaxlib.__version__", "99")


CHANGES: list[Callable[[Path, pytest.MonkeyPatch], None]] = [
    touch_the_checkpoint,
    add_a_file,
    touch_the_config,
    touch_a_source,
    set_a_variable,
    change_a_setting,
    move_to_another_cpu,
    update_a_library,
    remove_a_source,  # the last one: nothing is kept of sources that are gone
]


def shifted(model, keys, inputs, *, by=1, kind=None):
    return {"y": inputs["x"] + by}


SHIFTED = Endpoint(shifted, {"x": TensorSpec((), jnp.float32)}, {"by": 1, "kind": None})


def executor_of(export: Path) -> Executor:
    """An executor of one endpoint that compiles fast, whose programs are kept as those of the export."""
    return Executor(None, {"shifted": SHIFTED}, batch_sizes=(2,), kept=Snapshot(export).programs)


def test_a_start_after_a_change_is_as_the_first(export: Path, monkeypatch: pytest.MonkeyPatch):
    expected, _ = start(export)
    touch_the_checkpoint(export, monkeypatch)
    for built in (True, False):
        samples, pipeline = start(export)
        assert was_built(pipeline) == built
        assert pipeline.executor.compile_count == built
        np.testing.assert_array_equal(samples, expected)


def test_a_snapshot_that_no_longer_fits_is_made_anew(export: Path, monkeypatch: pytest.MonkeyPatch):
    """And then fits until the next change."""
    source = export.parent / "source.py"
    source.touch()
    files = looks.loaded_files() | {str(source)}
    monkeypatch.setattr(looks, "loaded_files", lambda: files)

    def compiled() -> int:
        executor = executor_of(export)
        assert executor("shifted", {"x": np.zeros(2, np.float32)})["y"].tolist() == [1, 1]
        return executor.compile_count

    assert compiled() == 1
    try:
        for change in CHANGES:
            assert compiled() == 0, change
            change(export, monkeypatch)
            assert compiled() == 1, change
    finally:
        jax.config.update("jax_default_matmul_precision", None)


def test_a_replaced_export_gives_its_own_samples(export: Path):
    old, _ = start(export)
    other = tiny()
    other.decoder.stem.bias[...] = other.decoder.stem.bias[...] + 1
    export_model(other, export, step=3, training_steps=5, final_loss=1.5)
    new, _ = start(export)
    assert (new != old).any()
    np.testing.assert_array_equal(start(export)[0], new)


def test_a_source_that_changed_since_it_was_loaded_keeps_a_snapshot_from_being_made(
    export: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(looks, "_STARTED", 0)
    start(export)
    assert was_built(start(export)[1])


def test_an_export_with_a_link_out_of_it_is_not_kept(export: Path):
    shutil.move(export / "checkpoints", export.parent / "elsewhere")
    (export / "checkpoints").symlink_to(export.parent / "elsewhere")
    start(export)
    assert was_built(start(export)[1])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def open_to_all(path: Path) -> None:
    path.chmod(0o666)


DAMAGES: list[Callable[[Path], None]] = [cut, flip, empty, open_to_all, Path.unlink]


def parts_of(export: Path, root: Path) -> list[Path]:
    """The record of an export, and the parts that it names."""
    record = root / Snapshot(export)._name
    content = record.read_text()
    return [record, *(path for path in record.parent.iterdir() if path.name in content)]


def test_damaged_weights_are_restored_anew(export: Path, root: Path):
    expected, first = start(export)
    size = sum(leaf.nbytes for leaf in first.executor.weights)
    for damage in DAMAGES:
        (path,) = (path for path in parts_of(export, root) if path.stat().st_size == size)
        damage(path)
        for built in (True, False):
            samples, pipeline = start(export)
            assert was_built(pipeline) == built, damage
            assert pipeline.executor.compile_count == 0, damage
            np.testing.assert_array_equal(samples, expected)
            if damage is open_to_all and built:
                path.unlink()  # what others could have written stays refused until it is deleted
                start(export)


def test_damaged_records_and_programs_are_made_anew(export: Path, root: Path):
    def compiled() -> int:
        executor = executor_of(export)
        assert executor("shifted", {"x": np.zeros(2, np.float32)})["y"].tolist() == [1, 1]
        return executor.compile_count

    assert compiled() == 1
    for damage in DAMAGES:
        for number in range(2):
            path = parts_of(export, root)[number]
            damage(path)
            assert compiled() == 1, damage
            if damage is open_to_all:
                path.unlink()
                compiled()
            assert compiled() == 0, damage


def test_without_a_cache_a_start_is_as_the_first(export: Path, root: Path):
    root.mkdir()
    root.chmod(0o777)
    for _ in range(2):
        _, pipeline = start(export)
        assert was_built(pipeline)
        assert pipeline.executor.compile_count == 1
    assert not any(root.iterdir())


def test_large_weights_are_restored_but_nothing_is_compiled(export: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(snapshots, "MAX_WEIGHT_BYTES", 1000)
    first, _ = start(export)
    second, pipeline = start(export)
    assert was_built(pipeline)
    assert pipeline.executor.compile_count == 0
    np.testing.assert_array_equal(second, first)


def test_a_pipeline_is_freed_with_its_last_name(export: Path):
    for built in (True, False):
        pipeline = start(export)[1]
        assert was_built(pipeline) == built
        executor = pipeline.executor
        gone = [weakref.ref(value) for value in (pipeline, executor, executor._catalog.weights)]
        del executor
        with collector_off():
            del pipeline
            assert [ref() for ref in gone] == [None] * 3


def test_dtypes_have_snapshots_of_their_own(export: Path):
    first = generate(load_pipeline(export, batch_size=4, dtype="bfloat16"))
    exact, _ = start(export)
    assert (first != exact).any()
    second = load_pipeline(export, batch_size=4, dtype=jnp.bfloat16)
    np.testing.assert_array_equal(generate(second), first)
    assert second.executor.compile_count == 0


def test_options_are_kept_apart(export: Path):
    x = np.zeros(2, np.float32)
    for compiled in (3, 1):  # of an option without a form in JSON nothing is kept
        executor = executor_of(export)
        assert executor("shifted", {"x": x})["y"].tolist() == [1, 1]
        assert executor("shifted", {"x": x}, by=2)["y"].tolist() == [2, 2]
        assert executor("shifted", {"x": x}, kind=int)["y"].tolist() == [1, 1]
        assert executor.compile_count == compiled


def test_what_jax_had_in_its_own_cache_is_kept_all_the_same(root: Path, monkeypatch: pytest.MonkeyPatch):
    before = {name: jax.config.values[name] for name in jax.config.values if "_cache_" in name}
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        cache.enable_compilation_cache()
        model, _, _ = load_exported_model("mnist-vae")
        expected = Executor(model, batch_sizes=(8,))("generate", key=jax.random.key(0), num_rows=8)["x"]
        for built in (True, False):
            executor = load_pipeline("mnist-vae", batch_size=8).executor
            samples = executor("generate", key=jax.random.key(0), num_rows=8)["x"]
            np.testing.assert_array_equal(samples, expected)
            assert executor.compile_count == built
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        cache.compilation_cache.reset_cache()
