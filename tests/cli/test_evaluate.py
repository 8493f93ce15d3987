"""`artifex evaluate`: figures as a table and as JSON."""

import json

import numpy as np
import pytest
from PIL import Image

from artifex.generative_models.inference.measure.features import FeatureModel
from artifex.generative_models.inference.measure.quality import evaluate
from artifex.generative_models.inference.pipeline import load_pipeline


@pytest.fixture
def real(small, folder):
    np.save("real.npy", small)
    return small


def test_json_has_what_python_says(model, cli, real):
    said = cli("evaluate", model, "--features", model, "--data", "real.npy", "-n", 20, "--seed", 3, "--json")
    facts = json.loads(said)
    assert (facts["model"], facts["num_real"], facts["seed"]) == (str(model), 70, 3)
    wanted = evaluate(load_pipeline(model), real, FeatureModel(load_pipeline(model)), num_samples=20, seed=3)
    assert [one["name"] for one in facts["measures"]] == [one.name for one in wanted]
    for found, one in zip(facts["measures"], wanted, strict=True):
        np.testing.assert_allclose(
            [found["value"], found["low"], found["high"]],
            [one.value, one.low, one.high],
            rtol=1e-4,
            atol=1e-5,
        )
    numbers = {one["name"]: one["num_pictures"] for one in facts["measures"]}
    assert (numbers["frechet_distance"], numbers["psnr"]) == (20, 70)


def test_a_table_for_people(model, cli, real, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    shown = cli("evaluate", model, "--features", model, "--data", "real.npy", "-n", 20)
    lines = shown.splitlines()
    assert lines[:2] == [f"{model}, seen by {model}", "beside 70 real pictures"]
    names = [line.split()[0] for line in lines[3:] if line and not line.startswith(" ")]
    assert names[0] == "frechet_distance"
    assert names[-2:] == ["feature_distance", "bits_per_dim_bound"]
    assert max(map(len, lines[2:])) <= 110


def test_a_plot_and_no_likelihood(model, cli, real):
    plot = ["--plot", "quality.png", "--no-likelihood", "--json", "--set", "temperature=0"]
    facts = json.loads(cli("evaluate", model, "--features", model, "--data", "real.npy", "-n", 20, *plot))
    (diversity,) = (one["value"] for one in facts["measures"] if one["name"] == "diversity")
    assert diversity < 1e-3  # all samples are the same
    assert facts["measures"][-1]["name"] == "feature_distance"
    with Image.open("quality.png") as picture:
        assert facts["plot"].endswith("quality.png")
        pixels = np.asarray(picture)
    assert pixels.shape == (840, 1820, 3)
    assert (pixels[0] == 255).all()  # white around, with dark pictures in it
    assert (pixels[150:600, 60:400] < 128).any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--data", "none.npy"), "none.npy"),
        (("--data", "real.npy", "--features", "mnist-classifier"), "real.npy"),
        (("--data", "floats.npy"), "expected uint8 pictures, got float32"),
        (("--data", "real.npy", "--set", "label=3"), "label is not taken"),
        (("--plot", "quality.jpg"), "quality.jpg: expected a .png"),
        (("--data", "few.npy"), "a covariance of 4 features takes at least 5 real pictures, got 3"),
    ],
)
def test_bad_input(model, failing_cli, real, arguments, words):
    np.save("floats.npy", real.astype(np.float32))
    np.save("few.npy", real[:3])
    features = () if "--features" in arguments else ("--features", model)
    assert words in failing_cli("evaluate", model, *features, "-n", 9, *arguments)
