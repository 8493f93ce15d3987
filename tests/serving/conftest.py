"""A tiny exported model, and a server's data plane over it without any protocol."""

import asyncio
import functools
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx
from served import GOOD, MAX_BYTES, URL, Live, live
from shared import TIMEOUT

from artifex.generative_models.core import Endpoint, TensorSpec
from artifex.generative_models.core.checkpointing import save_checkpoint, setup_checkpoint_manager
from artifex.generative_models.core.errors import ConfigError
from artifex.generative_models.inference import Executor, InferencePipeline, export_model
from artifex.generative_models.inference.pipeline import load_pipeline
from artifex.generative_models.models.vae import VAE
from artifex.serving import create_app
from artifex.serving.plane.dataplane import DataPlane
from artifex.serving.plane.origins import PipelineSource, Source
from artifex.serving.plane.repository import Repository
from artifex.serving.plane.requests import InferRequest, InferResponse

Serving = Callable[..., AbstractAsyncContextManager[DataPlane]]
Ask = Callable[..., InferResponse]


def vae(seed: int = 0, latent_dim: int = 4) -> VAE:
    return VAE((8, 8, 1), latent_dim, [4, 8], [8, 4], rngs=nnx.Rngs(seed))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of an untrained model, for tests that leave it as it is."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    return export_model(vae(), path, step=3, training_steps=5, final_loss=1.5)


@pytest.fixture
def export(made: Path, tmp_path: Path) -> Path:
    """An export to change at will."""
    return Path(shutil.copytree(made, tmp_path / "tiny"))


@pytest.fixture
def add_step(export: Path) -> Callable[[int], None]:
    """Puts other weights into the export, as a later step."""

    def add(step: int) -> None:
        with setup_checkpoint_manager(export / "checkpoints")[0] as manager:
            save_checkpoint(manager, vae(seed=step), step)

    return add


@pytest.fixture
def reshape(export: Path, tmp_path: Path) -> Callable[[], None]:
    """Puts a model of other shapes in the export's place."""

    def replace() -> None:
        other = export_model(vae(latent_dim=3), tmp_path / "other", step=4, training_steps=5, final_loss=1)
        shutil.rmtree(export)
        other.rename(export)

    return replace


@pytest.fixture(scope="session")
def pipeline(made: Path) -> InferencePipeline:
    """The tiny model in batches of 1 and 2, for tests that only run it."""
    return load_pipeline(made, batch_size=2)


def _scale(model, keys, inputs):
    return {"y": model["w"] * inputs["x"]}


class Scaler:
    """A source of models that multiply by a factor, which is their version; it can be held anywhere."""

    def __init__(self):
        self.factor = 2
        self.times_opened = 0
        self.most_at_once = 0
        self.may_open = threading.Event()
        self.may_open.set()
        self._times_looked = 0
        self._num_opening = 0
        self._changed = threading.Condition()
        self._reached = threading.Event()
        self._may_run = threading.Event()
        self._may_run.set()

    def identity(self):
        with self._changed:
            self._times_looked += 1
            self._changed.notify_all()
            return self.factor

    def open(self):
        with self._changed:
            factor = self.factor
            self.times_opened += 1
            self._num_opening += 1
            self.most_at_once = max(self.most_at_once, self._num_opening)
            self._changed.notify_all()
        assert self.may_open.wait(TIMEOUT)
        with self._changed:
            self._num_opening -= 1
        if not factor:
            raise ConfigError("0 is no factor")
        endpoint = Endpoint(_scale, {"x": TensorSpec((3,), np.float32)})
        executor = Executor({"w": np.float32(factor)}, {"scale": endpoint}, batch_sizes=(1, 2))
        executor.run = functools.partial(self._run, executor.run)
        return InferencePipeline(executor, metadata={"step": factor}), str(factor)

    @contextmanager
    def held(self):
        """Lets no batch run before the block ends."""
        self._reached.clear()
        self._may_run.clear()
        try:
            yield
        finally:
            self._may_run.set()

    def wait_reached(self):
        """Waits until a batch is held."""
        assert self._reached.wait(TIMEOUT)

    def wait_opened(self, times):
        """Waits until it was opened so often in all."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.times_opened >= times, TIMEOUT)

    def wait_looked(self, times):
        """Waits until somebody looked whether it changed, so many times from now."""
        with self._changed:
            wanted = self._times_looked + times
            assert self._changed.wait_for(lambda: self._times_looked >= wanted, TIMEOUT)

    def _run(self, run, job):
        self._reached.set()
        assert self._may_run.wait(TIMEOUT)
        return run(job)


@pytest.fixture
def scaler() -> Scaler:
    """A source that loads fast and can be changed and held."""
    return Scaler()


@asynccontextmanager
async def _serving(
    sources: Mapping[str, Source], *, max_rows: int = 64, timeout: float | None = None
) -> AsyncIterator[DataPlane]:
    repository = Repository(sources, max_queued_rows=1024)
    try:
        for name in sources:
            await repository.load(name)
        yield DataPlane(repository, max_rows=max_rows, timeout=timeout)
    finally:
        await repository.close()


@pytest.fixture
def serving() -> Serving:
    """Loads models from sources, by name; lets go of them at the end of its block."""
    return _serving


@pytest.fixture(scope="session")
def bounded(compiled_plain: Executor, pipeline: InferencePipeline) -> Iterator[Live]:
    """A server of `plain` and `tiny` that takes bodies of 64 KiB and 16 rows."""
    models = {"plain": compiled_plain, "tiny": pipeline}
    with live(create_app(models, max_body_bytes=MAX_BYTES, max_rows=16)) as server:
        yield server


@pytest.fixture
def unharmed(bounded: Live) -> Iterator[Live]:
    """`bounded`, which answers a good request after each test."""
    yield bounded
    response = bounded.client.post(URL, json=GOOD)
    assert response.status_code == 200
    assert response.json()["outputs"][0]["data"] == [2, 4, 6]


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """The event loop of the tests of a file."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def plane(
    runner: asyncio.Runner, pipeline: InferencePipeline, compiled_plain: Executor
) -> Iterator[DataPlane]:
    """`tiny` and `plain` behind a data plane that takes 16 rows, for tests that leave it as it is."""
    plain = InferencePipeline(compiled_plain)
    block = _serving({"tiny": PipelineSource(pipeline), "plain": PipelineSource(plain)}, max_rows=16)
    plane = runner.run(block.__aenter__())
    yield plane
    runner.run(block.__aexit__(None, None, None))


@pytest.fixture
def ask(runner: asyncio.Runner, plane: DataPlane) -> Ask:
    """Runs one request: the model's name, its inputs and its parameters."""

    def ask(model: str, inputs: Mapping[str, Any] | None = None, **parameters: Any) -> InferResponse:
        request = InferRequest(model, inputs=dict(inputs or {}), parameters=parameters)
        return runner.run(plane.infer(request))

    return ask
