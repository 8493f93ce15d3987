"""What a model that takes steps is told on the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from denoisers import denoiser

from artifex.generative_models.inference import export_model
from artifex.generative_models.inference.formats import exporting
from artifex.generative_models.inference.pipeline import InferencePipeline, load_pipeline

Cli = Callable[..., str]


@pytest.fixture(scope="module")
def drawer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "_refuse_captured_weights", lambda model: None)  # which would trace it
        return export_model(denoiser(), tmp_path_factory.mktemp("models") / "drawer", step=1)


@pytest.fixture(scope="module")
def pipeline(drawer: Path) -> InferencePipeline:
    return load_pipeline(drawer, batch_size=2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, {}),
        ({"label": "3", "sampler": "euler"}, {"label": 3, "sampler": "euler"}),
        ({"label": "0,1,2", "num_steps": "[2,3,4]"}, {"label": [0, 1, 2], "num_steps": [2, 3, 4]}),
        ({"sampler": "ddim,euler,dpm++2m"}, {"sampler": ["ddim", "euler", "dpm++2m"]}),
        ({"label": "[1]", "guidance_scale": "2"}, {"label": 1, "guidance_scale": 2.0}),
        ({"num_steps": "70", "sampler": '"ddim"', "eta": "0.5"}, {"num_steps": 70, "eta": 0.5}),
    ],
)
def test_set_says_what_python_says(
    drawer: Path,
    pipeline: InferencePipeline,
    cli: Cli,
    settings: dict[str, str],
    said: dict[str, object],
):
    sets = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    cli("generate", drawer, "-n", 3, "-o", "out.npy", "--seed", 5, "--batch-size", 2, *sets)
    np.testing.assert_array_equal(np.load("out.npy"), pipeline.generate(3, rngs=5, **said))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("label=0,1", "generate: label: expected one value, or 3, got shape [2]"),
        ("label=9", "generate: label: expected from 0 to 3, got 9"),
        ("label=0,x,1", "label: expected an integer from 0 to 3, got 'x'"),
        ("sampler=dpm", "sampler: expected one of ddpm, ddim,"),
        ("lable=3", "generate: lable is not taken; it takes num_steps, sampler, eta, label, guidance_scale"),
        ("max_steps=256", "generate: max_steps is not taken"),
        ("table=[[1]]", "generate: table is not taken"),
        ("num_steps=101", "num_steps: expected from 1 to 100, got 101"),
    ],
)
def test_what_does_not_fit_is_one_line(drawer: Path, failing_cli: Cli, setting: str, words: str):
    assert words in failing_cli("generate", drawer, "-n", 3, "-o", "out.npy", "--set", setting)


def test_words_with_spaces_are_no_list(drawer: Path, failing_cli: Cli):
    said = failing_cli("generate", drawer, "-n", 2, "-o", "out.npy", "--set", "sampler=a cat, asleep")
    assert said.endswith("got 'a cat, asleep'")


def test_inspect_tells_the_fields(drawer: Path, cli: Cli):
    facts = json.loads(cli("inspect", drawer, "--json"))["endpoints"]
    assert facts["generate"]["inputs"] == facts["generate"]["options"] == {}
    assert facts["denoise"]["fields"].keys() == {"label"}
    assert facts["denoise"]["inputs"].keys() == {"x", "time"}
    fields = facts["generate"]["fields"]
    assert fields["label"] == {
        "type": "int",
        "default": None,
        "minimum": 0,
        "maximum": 3,
        "choices": None,
        "above": None,
        "limits": "from 0 to 3",
        "needed": False,
        "doc": "The class; any if not said.",
    }
    assert fields["sampler"]["choices"][:3] == ["ddpm", "ddim", "euler"]
    assert fields["num_steps"]["default"] == 3
    shown = " ".join(cli("inspect", drawer).split())
    assert "num_steps (generate, from_noise, inpaint) int 3 from 1 to 100; Steps of the sampler." in shown
    assert "generate num_steps x float32[batch, 4, 4, 1] sampler" in shown
