"""`artifex generate` of a model of text."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import artifex
from artifex.generative_models.core.errors import InputError
from artifex.generative_models.inference import InferencePipeline

GPT2 = Path(__file__).parent.parent / "golden" / "gpt2"
Cli = Callable[..., str]


@pytest.fixture(scope="module")
def pipeline() -> InferencePipeline:
    return artifex.load(GPT2)


def test_it_prints_one(cli: Cli, pipeline: InferencePipeline) -> None:
    wanted = pipeline.call("generate", num_rows=1, rngs=0, prompt="A model", num_tokens=5, temperature=0.5)
    said = cli("generate", GPT2, "--set", "prompt=A model", "--set", "num_tokens=5", "--temperature", 0.5)
    assert said.rstrip("\n") == str(wanted["text"][0]).rstrip("\n")


@pytest.mark.parametrize("prompt", ["Hello,world", "null", "2024"])
def test_a_prompt_is_taken_as_it_is_written(cli: Cli, pipeline: InferencePipeline, prompt: str) -> None:
    wanted = pipeline.call("generate", num_rows=1, rngs=0, prompt=prompt, num_tokens=5)["text"][0]
    said = cli("generate", GPT2, "--set", f"prompt={prompt}", "--set", "num_tokens=5")
    assert said.rstrip("\n") == str(wanted).rstrip("\n")


def test_what_is_not_pictures_is_refused_where_pictures_are_wanted(pipeline: InferencePipeline) -> None:
    with pytest.raises(InputError, match="generate: expected a model of pictures, and it gives text"):
        pipeline.generate(1, rngs=0)
    with pytest.raises(InputError, match="generate: expected pictures x, and it gives "):
        pipeline.picture_dtype("generate")


def test_a_file_has_an_object_a_line(cli: Cli, pipeline: InferencePipeline) -> None:
    wanted = pipeline.call("generate", num_rows=3, rngs=4, prompt="A", num_tokens=5)
    command = ("generate", GPT2, "-n", 3, "--seed", 4, "--set", "prompt=A", "--set", "num_tokens=5")
    said = json.loads(cli(*command, "-o", "a.jsonl", "--json"))
    assert (said["output"], said["rows"]) == (str(Path("a.jsonl").absolute()), 3)
    lines = [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == wanted["text"].tolist()
    assert [len(line["tokens"]) for line in lines] == wanted["length"].tolist()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "a.png"], "a.png: expected a .jsonl file for text"),
        (["--set", "top_k=0"], "generate: top_k: expected from 1, got 0"),
        (["--set", "label=3"], "label is not taken; it takes prompt, num_tokens, temperature"),
    ],
)
def test_what_does_not_fit_is_one_line(failing_cli: Cli, arguments: list[str], words: str) -> None:
    assert words in failing_cli("generate", GPT2, "--set", "prompt=A", *arguments)
