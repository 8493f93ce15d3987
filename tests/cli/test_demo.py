"""What the demo shows of the models that draw digits out of noise."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import artifex
from artifex.cli.demo_models import Shown, show_denoiser
from artifex.generative_models.inference.pipeline import load_pipeline


@pytest.fixture(scope="module")
def shown() -> Shown:
    told: list[str] = []
    shown = show_denoiser(load_pipeline("mnist-flow", batch_size=32), told.append)
    assert told == ["Compiling", "Drawing"]
    return shown


def test_it_draws_the_digits_that_labels_say(shown: Shown) -> None:
    digits = shown.panels[0].rows
    assert (digits.shape, digits.dtype) == ((2, 10, 28, 28, 1), np.uint8)
    classify = artifex.load("mnist-classifier").executor
    found = classify("classify", {"x": digits.reshape(20, 28, 28, 1)})["label"]
    assert (found == np.tile(np.arange(10), 2)).sum() >= 17  # of 20, where 19 are to be expected


def test_estimates_come_closer(shown: Shown) -> None:
    estimates = shown.panels[1].rows.astype(np.float64)
    assert len(estimates) == 5
    np.testing.assert_array_equal(estimates[-1], shown.panels[0].rows[0])
    distances = [np.abs(estimate - estimates[-1]).mean() for estimate in estimates]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 10  # of 255


def test_the_command_draws_and_times(cli: Callable[..., str], folder: Path) -> None:
    facts = json.loads(cli("demo", "--model", "mnist-flow", "-o", "new/figure.png", "--json"))
    assert facts["output"] == str(folder / "new/figure.png")
    assert facts["model"] == "mnist-flow"
    assert facts["samples_per_second"] > 0
    assert "images_encoded_per_second" not in facts
    figure = np.asarray(Image.open("new/figure.png"))
    assert figure.shape[2] == 3
    assert figure.min() < 30  # there is ink on the paper
