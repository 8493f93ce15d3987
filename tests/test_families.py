"""What runs models runs those of every family, with no change of theirs; a family is a line of a table."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from every_family import FAMILIES, STEPPED
from served import live
from shared import TIMEOUT, TOLERANCE

from artifex.generative_models.inference import (
    Batcher,
    Executor,
    InferencePipeline,
    denormalize_images,
    stream_samples,
)
from artifex.generative_models.inference.batching.previews import Preview
from artifex.generative_models.inference.measure import laws
from artifex.serving import create_app

BATCH_SIZE = 4  # of all programs but those of one row
ROWS = 5
LABELS = np.array([2, 0, 1, 1, 2])


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {name: build() for name, build in FAMILIES.items()}


@pytest.fixture(scope="module")
def pipelines(models: Mapping[str, Any]) -> dict[str, InferencePipeline]:
    executors = {name: Executor(model, batch_sizes=(BATCH_SIZE,)) for name, model in models.items()}
    return {
        name: InferencePipeline(executor, postprocess_fn=denormalize_images, batch_size=BATCH_SIZE)
        for name, executor in executors.items()
    }


@pytest.fixture(scope="module")
def drawn(pipelines: Mapping[str, InferencePipeline]) -> dict[str, np.ndarray]:
    """What each draws with seed 7."""
    return {name: each.generate(ROWS, rngs=7, label=LABELS) for name, each in pipelines.items()}


def near(found: np.ndarray, wanted: np.ndarray) -> None:
    """Pictures of 256 levels that were rounded apart."""
    assert np.abs(found.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize(
    "family", sorted(FAMILIES.keys() - {"denoiser", "vae"})
)  # whose endpoints have tests of their own
def test_every_endpoint_keeps_the_laws(
    family: str, models: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples in batches of one row too, the others within one batch size, whose padding is no row."""
    model = models[family]
    monkeypatch.setattr(laws, "_ROWS", BATCH_SIZE - 1)
    for sizes, names in (
        ((1, BATCH_SIZE), {"generate"}),
        ((BATCH_SIZE,), model.endpoints().keys() - {"generate"}),
    ):
        monkeypatch.setattr(laws, "_SIZES", sizes)
        found = laws.check(model, endpoints=sorted(names))
        assert found.holds, str(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_differ_and_repeat(
    family: str, pipelines: Mapping[str, InferencePipeline], drawn: Mapping[str, np.ndarray]
) -> None:
    again = pipelines[family].generate(2, rngs=7, label=LABELS[:2])
    near(again, drawn[family][:2])
    assert (drawn[family][2] != drawn[family][3]).any()  # of one class


@pytest.mark.parametrize("family", STEPPED)
def test_rows_share_slots_with_previews(family: str, pipelines: Mapping[str, InferencePipeline]) -> None:
    pipeline = pipelines[family]
    seen: list[np.ndarray] = []

    def look(preview: Preview) -> None:
        seen.append(preview.outputs["x"])

    with Batcher(pipeline.executor) as batcher:
        futures = [
            batcher.submit("generate", num_rows=1, seed=seed, label=label, every=1, on_preview=look)
            for seed, label in enumerate(LABELS.tolist())
        ]
        found = [future.result(TIMEOUT)["x"] for future in futures]
    for seed, (label, rows) in enumerate(zip(LABELS.tolist(), found, strict=True)):
        wanted = pipeline.call("generate", num_rows=1, rngs=seed, label=label)["x"]
        np.testing.assert_allclose(rows, wanted, **TOLERANCE)
    assert seen
    assert all(np.isfinite(rows).all() for rows in seen)


@pytest.mark.parametrize("family", FAMILIES)
def test_streams(family: str, models: Mapping[str, Any], pipelines: Mapping[str, InferencePipeline]) -> None:
    executor = pipelines[family].executor
    found = np.stack(list(stream_samples(executor, ROWS, seed=7, label=1)))
    wanted = pipelines[family].call("generate", num_rows=ROWS, rngs=7, label=1)["x"]
    np.testing.assert_allclose(found, wanted, **TOLERANCE)


@pytest.mark.parametrize("family", ["autoregressive", "realnvp", "vae"])  # of each kind one
def test_servers(
    family: str, pipelines: Mapping[str, InferencePipeline], drawn: Mapping[str, np.ndarray]
) -> None:
    with live(create_app({family: pipelines[family]})) as server:
        body = {"num_samples": ROWS, "seed": 7, "label": LABELS.tolist()}
        answer = server.client.post(f"/v2/models/{family}/generate", json=body)
        assert answer.status_code == 200, answer.text
    near(
        np.asarray(pipelines[family].postprocess_fn(np.array(answer.json()["x"], np.float32))), drawn[family]
    )
