"""An actor without Ray: what it refuses, it tells."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from shared import randomised

from artifex.generative_models.core.errors import ConfigError, OutputError
from artifex.generative_models.inference import InferencePipeline, export_model
from artifex.generative_models.inference.offline.parts import open_parts
from artifex.generative_models.inference.pipeline import load_pipeline
from artifex.generative_models.models.ebm import EBM
from artifex.generative_models.models.vae import VAE
from artifex.generative_models.models.vqvae import VQVAE
from artifex.ray import worker
from artifex.ray.inputs import Inputs
from artifex.ray.worker import Facts, Setup, Task, Worker, describe


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps this process to the cores it has."""
    monkeypatch.setattr(Setup, "_owns_cores", lambda self: False)


def setup(model: Path | str) -> Setup:
    return Setup(str(model), "encode", 4, None, 1.0, 0.0)


def write(model: Path, facts: Facts, images: Path, identity: object, output: Path) -> None:
    """Has an actor write all rows, or raises the failure that it tells."""
    num_rows = len(np.load(images))
    parts = open_parts(
        output, (num_rows, 4), np.dtype(np.float32), column="mean", rows_per_part=80, job={}, resume=False
    )
    with parts:
        inputs = Inputs.of(images, "image", resize=False)
        actor = Worker(setup(model), Task(facts.identity, parts.place, inputs, identity))
        told = actor({"start": np.array([0]), "stop": np.array([num_rows])})
        if told["failure"] != [b""]:
            raise pickle.loads(told["failure"][0])
        parts.wrote(0, num_rows)


@pytest.fixture
def images(tmp_path: Path, small: np.ndarray) -> Path:
    np.save(tmp_path / "x.npy", small)
    return tmp_path / "x.npy"


def identity_of(images: Path) -> object:
    return Inputs.of(images, "image", resize=False).open((8, 8, 1)).identity()


def test_writes_what_one_process_does(
    tiny: Path, tmp_path: Path, images: Path, plain: InferencePipeline, small: np.ndarray
):
    facts = describe(setup(tiny))
    assert (facts.input_shape, facts.output_shape) == ((8, 8, 1), (4,))
    assert (facts.output, facts.output_dtype) == ("mean", "float32")
    write(tiny, facts, images, identity_of(images), tmp_path / "out.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), plain.encode(small))


def test_the_driver_is_told_what_a_models_latents_are_called(tmp_path: Path):
    model = VQVAE((8, 8, 1), 5, 2, [4, 4], prior_features=4, prior_layers=1, prior_heads=1, rngs=nnx.Rngs(0))
    facts = describe(setup(export_model(model, tmp_path / "codes", step=1)))
    assert isinstance(facts, Facts)
    assert (facts.output, facts.output_shape, facts.output_dtype) == ("codes", (2, 2), "int32")


def test_another_model_at_the_same_path_is_found(tiny: Path, tmp_path: Path, images: Path):
    facts = describe(setup(tiny))
    other = VAE((8, 8, 1), 4, [4, 8], [8, 4], rngs=nnx.Rngs(1))
    export = export_model(other, tmp_path / "tiny", step=3, training_steps=5, final_loss=1.5)
    with pytest.raises(OutputError, match=r"would write other rows.*model is \w{64} here and was \w{64}"):
        write(export, facts, images, identity_of(images), tmp_path / "out.npy")
    assert not (tmp_path / "out.npy").exists()


def test_a_copy_of_the_model_is_as_good(tiny: Path, tmp_path: Path, images: Path):
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    write(copy, describe(setup(tiny)), images, identity_of(images), tmp_path / "out.npy")


def test_other_pictures_at_the_same_path_are_found(tiny: Path, tmp_path: Path, images: Path):
    identity = identity_of(images)
    np.save(images, np.load(images)[:-1])
    with pytest.raises(OutputError, match="the pictures are"):
        write(tiny, describe(setup(tiny)), images, identity, tmp_path / "out.npy")


def test_a_model_that_is_not_there_is_told():
    assert isinstance(describe(setup("nobody")), ConfigError)


def test_a_share_of_a_gpu_is_a_share_of_its_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    environment: dict[str, str] = {}
    monkeypatch.setattr(worker.os, "environ", environment)
    for share, told in ((1.0, {}), (0.5, {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.450"})):
        environment.clear()
        with Setup("x", "encode", None, None, 1.0, share).device():
            assert environment == told


def test_models_that_make_latents_write_floats(tmp_path: Path):
    shape = (4, 4, 4)
    model = randomised(lambda: EBM(shape, 3, (4,), (1,), 6, 4, num_steps=5, rngs=nnx.Rngs(0)))
    export = export_model(model, tmp_path / "latents", step=3, image_range=None)
    generating = Setup(str(export), "generate", 4, None, 1.0, 0.0)
    facts = describe(generating)
    assert (facts.output_shape, facts.output_dtype) == (shape, "float32")
    job: dict = {"column": "x", "rows_per_part": 80, "job": {}, "resume": False}
    parts = open_parts(tmp_path / "x.npy", (6, *shape), np.dtype(facts.output_dtype), **job)
    with parts:
        steps = {"label": 2, "num_steps": 2}
        said = {"num_samples": 6, "seed": 5, "temperature": 1.0, "given": steps}
        actor = Worker(generating, Task(facts.identity, parts.place, given=said))
        told = actor({"start": np.array([0]), "stop": np.array([6])})
        assert told["failure"] == [b""], pickle.loads(told["failure"][0])
        parts.wrote(0, 6)
    wanted = load_pipeline(export, batch_size=4).generate(6, rngs=5, **steps)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), wanted)
    assert wanted.dtype == np.float32
    assert wanted.std() > 0.1
