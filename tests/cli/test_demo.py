"""What the demo shows of the models that draw digits out of noise."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import artifex
from artifex.cli import app, demo_models
from artifex.cli.demo_models import Shown
from artifex.generative_models.inference.pipeline import InferencePipeline


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Shown]:
    """What the command drew, what it said, and what it was shown."""
    figure, seen = tmp_path_factory.mktemp("demo") / "new" / "figure.png", []
    show = demo_models.show_denoiser

    def show_denoiser(pipeline: InferencePipeline, tell: Callable[[str], None]) -> Shown:
        told: list[str] = []
        seen.append(show(pipeline, told.append))
        assert told == ["Compiling", "Drawing"]
        return seen[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_models, "show_denoiser", show_denoiser)
        patch.setattr(demo_models, "BATCH_SIZE", 16)
        patch.setattr(demo_models, "_OF_EACH", 1)
        words = ["demo", "--model", "mnist-flow", "-o", str(figure), "--json"]
        result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert (result.exit_code, result.stderr) == (0, "")
    return figure, json.loads(result.stdout), seen[0]


def test_it_draws_the_digits_that_labels_say(demo: tuple[Path, dict[str, Any], Shown]) -> None:
    digits = demo[2].panels[0].rows
    assert (digits.shape, digits.dtype) == ((1, 10, 28, 28, 1), np.uint8)
    classify = artifex.load("mnist-classifier").executor
    found = classify("classify", {"x": digits[0]})["label"]
    assert (found == np.arange(10)).sum() >= 8  # of 10, where nearly all are to be expected


def test_estimates_come_closer(demo: tuple[Path, dict[str, Any], Shown]) -> None:
    drawn, noisy = (panel.rows for panel in demo[2].panels)
    estimates = noisy.astype(np.float64)
    assert len(estimates) == 5
    np.testing.assert_array_equal(estimates[-1], drawn[0])
    distances = [np.abs(estimate - estimates[-1]).mean() for estimate in estimates]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 10  # of 255


def test_the_command_draws_and_times(demo: tuple[Path, dict[str, Any], Shown]) -> None:
    path, facts, _ = demo
    assert facts["output"] == str(path)
    assert facts["model"] == "mnist-flow"
    assert facts["samples_per_second"] > 0
    assert "images_encoded_per_second" not in facts
    figure = np.asarray(Image.open(path))
    assert figure.shape[2] == 3
    assert figure.min() < 30  # there is ink on the paper
