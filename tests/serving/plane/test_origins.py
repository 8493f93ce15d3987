"""Exports on disk: later steps, other shapes, damage, and replacement while they are read."""

import asyncio
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from shared import TIMEOUT, TOLERANCE

from artifex.generative_models.core.errors import CheckpointError
from artifex.generative_models.inference import Executor, load_exported_model
from artifex.serving.plane import origins
from artifex.serving.plane.descriptions import model_metadata
from artifex.serving.plane.origins import ExportSource
from artifex.serving.plane.repository import Repository
from artifex.serving.plane.requests import InferRequest
from artifex.serving.plane.statuses import UnloadableError


def sample(n=1):
    return InferRequest("m", inputs={}, parameters={"seed": 7, "num_samples": n})


def samples_of(export, step, n=1):
    """What a step of an export draws, without a server."""
    model, _, _ = load_exported_model(export, step=step)
    return np.asarray(
        Executor(model, batch_sizes=(n,))("generate", key=nnx.Rngs(7).sample(), num_rows=n)["x"]
    )


def states(plane):
    return {entry["name"]: (entry["version"], entry["state"]) for entry in plane.repository.index()}


def test_a_later_step_is_the_next_version_and_compiles_nothing(serving, export, add_step, compilations):
    async def main():
        async with serving({"m": ExportSource(export, batch_size=1)}) as plane:
            old = await plane.infer(sample())
            add_step(5)
            compilations.clear()
            await plane.repository.load("m")
            new = await plane.infer(sample())
            assert compilations == []
            assert plane.repository.entries["m"].loaded.num_compiled == 0
            return old, new

    old, new = asyncio.run(main())
    assert (old.version, new.version) == ("3", "5")
    np.testing.assert_allclose(old.outputs["x"], samples_of(export, 3), **TOLERANCE)
    np.testing.assert_allclose(new.outputs["x"], samples_of(export, 5), **TOLERANCE)
    assert np.abs(new.outputs["x"] - old.outputs["x"]).max() > 1e-2


def test_a_model_of_other_shapes_takes_the_place(serving, export, reshape):
    async def main():
        async with serving({"m": ExportSource(export, batch_size=1)}) as plane:
            assert model_metadata(plane, "m.decode")["inputs"][0]["shape"] == [-1, 4]
            reshape()
            await plane.repository.load("m")
            assert model_metadata(plane, "m.decode")["inputs"][0]["shape"] == [-1, 3]
            assert plane.repository.entries["m"].loaded.num_compiled > 0
            return await plane.infer(sample())

    response = asyncio.run(main())
    assert response.version == "4"
    np.testing.assert_allclose(response.outputs["x"], samples_of(export, 4), **TOLERANCE)


def no_metadata(export: Path) -> None:
    (export / "metadata.json").unlink()


def bad_config(export: Path) -> None:
    (export / "config.json").write_text("{")


def other_config(export: Path) -> None:
    config = json.loads((export / "config.json").read_text())
    (export / "config.json").write_text(json.dumps({**config, "latent_dim": 5}))


def no_files(export: Path) -> None:
    shutil.rmtree(export)


def empty_step(export: Path) -> None:
    (export / "checkpoints" / "9").mkdir()


def no_weights(export: Path) -> None:
    for path in (export / "checkpoints").rglob("d/*"):
        path.write_bytes(b"")


@pytest.fixture(scope="module")
def damageable(made, tmp_path_factory):
    """An export that all tests of damage share, since each load compiles."""
    return shutil.copytree(made, tmp_path_factory.mktemp("damaged") / "tiny")


@pytest.fixture(scope="module")
def loaded(runner, damageable):
    repository = Repository({"m": ExportSource(damageable, batch_size=1)}, max_queued_rows=8)
    runner.run(repository.load("m"))
    yield repository
    runner.run(repository.close())


# Orbax leaves reads behind in an event loop that it closes.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [no_metadata, bad_config, other_config, no_files, empty_step, no_weights])
def test_a_damaged_export_leaves_what_is_loaded(runner, made, damageable, loaded, damage):
    before, _ = loaded.find("m")
    damage(damageable)
    try:
        with pytest.raises(UnloadableError, match="m: loading failed") as caught:
            runner.run(loaded.load("m"))
    finally:
        shutil.rmtree(damageable, ignore_errors=True)
        shutil.copytree(made, damageable)
    for text in (str(caught.value), str(loaded.index())):
        assert str(damageable.parent) not in text
    assert loaded.index()[0]["state"] == "READY"
    assert loaded.is_ready
    after, _ = loaded.find("m")
    assert after is before
    assert after.batcher.submit("generate", seed=7, num_rows=1).result(TIMEOUT)["x"].shape == (1, 8, 8, 1)


@pytest.fixture
def during_open(monkeypatch):
    """Has something happen whenever an export was read, and counts how often it was."""
    real = origins.load_pipeline
    calls = []

    def after(happens):
        def load(*arguments, **settings):
            calls.append(settings)
            opened = real(*arguments, **settings)
            happens(len(calls))
            return opened

        monkeypatch.setattr(origins, "load_pipeline", load)
        return calls

    return after


def test_an_export_that_is_replaced_while_it_is_read_is_read_again(export, add_step, during_open):
    calls = during_open(lambda call: add_step(5) if call == 1 else None)
    pipeline, version = ExportSource(export, batch_size=1).open()
    assert (version, len(calls)) == ("5", 2)
    found = pipeline.executor("generate", key=nnx.Rngs(7).sample(), num_rows=1)["x"]
    np.testing.assert_allclose(found, samples_of(export, 5), **TOLERANCE)


@pytest.mark.parametrize("error", [CheckpointError("half there"), FileNotFoundError("gone")])
def test_what_fails_while_an_export_is_replaced_is_tried_again(export, add_step, during_open, error):
    def replace(call):
        if call == 1:
            add_step(5)
            raise error

    calls = during_open(replace)
    assert ExportSource(export, batch_size=1).open()[1] == "5"
    assert len(calls) == 2


def test_what_fails_although_nothing_changes_fails_at_once(export, during_open):
    def fail(call):
        raise CheckpointError("damaged")

    calls = during_open(fail)
    with pytest.raises(CheckpointError, match="damaged"):
        ExportSource(export, batch_size=1).open()
    assert len(calls) == 1


def test_an_export_that_changes_all_the_time_is_given_up(export, during_open):
    calls = during_open(lambda call: (export / str(call)).touch())
    with pytest.raises(UnloadableError, match="changes all the time"):
        ExportSource(export, batch_size=1).open()
    assert len(calls) > 1


def test_an_export_behind_links_is_watched_too(export, add_step, tmp_path):
    """Volumes of Kubernetes and atomic deployments look like this."""
    link = tmp_path / "current"
    link.symlink_to(export)
    (export / "checkpoints").rename(tmp_path / "elsewhere")
    (export / "checkpoints").symlink_to(tmp_path / "elsewhere")
    source = ExportSource(link)
    before = source.identity()
    add_step(5)
    assert source.identity() != before


def test_a_link_that_leads_elsewhere_is_seen(export, reshape, tmp_path, made):
    link = tmp_path / "current"
    link.symlink_to(made)
    source = ExportSource(link)
    before = source.identity()
    (tmp_path / "next").symlink_to(export)
    reshape()
    (tmp_path / "next").rename(link)
    assert source.identity() != before
    pipeline, version = source.open()
    assert version == "4"
    assert pipeline.executor.spec("decode")[0]["z"].shape == (3,)
