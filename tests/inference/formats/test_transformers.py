"""A directory of transformers gives token for token what transformers gives."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from artifex.generative_models.core.errors import (
    CheckpointMismatchError,
    CheckpointNotFoundError,
    ConfigError,
    InputError,
)
from artifex.generative_models.inference import InferencePipeline, export_model, load_exported_model
from artifex.generative_models.inference.pipeline import load_pipeline

GPT2 = Path(__file__).parent.parent.parent / "golden" / "gpt2"
NEW_TOKENS = 16
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def golden() -> Iterator[dict[str, np.ndarray]]:
    with np.load(GPT2 / "generated.npz") as archive:
        yield dict(archive)


@pytest.fixture(scope="module")
def prompts(golden: dict[str, np.ndarray]) -> list[str]:
    return golden["prompts"].tolist()


@pytest.fixture(scope="module")
def pipeline() -> InferencePipeline:
    return load_pipeline(GPT2, batch_size=4)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GPT2, tmp_path / "gpt2"))


def changed(directory: Path, **settings: object) -> Path:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return directory


def renamed(directory: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Path:
    save_file(change(load_file(directory / WEIGHTS)), directory / WEIGHTS)
    return directory


@jax.jit
def logits(network: Any, tokens: np.ndarray) -> jax.Array:
    return network(tokens)


def logits_agree(directory: Path, golden: dict[str, np.ndarray]) -> None:
    network = load_exported_model(directory)[0].network
    found = np.asarray(logits(network, golden["prompt_3"][None]))[0]
    np.testing.assert_allclose(found, golden["logits_3"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "penalty"), [("greedy", 1.0), ("penalty", 1.7)])
def test_prompts_of_several_lengths_go_on_as_in_transformers(
    kind: str,
    penalty: float,
    pipeline: InferencePipeline,
    golden: dict[str, np.ndarray],
    prompts: list[str],
) -> None:
    said = {"num_tokens": NEW_TOKENS, "greedy": True, "repetition_penalty": penalty}
    found = pipeline.call("generate", num_rows=len(prompts), prompt=prompts, **said)
    wanted = [golden[f"{kind}_{i}"] for i in range(len(prompts))]
    assert found["length"].tolist() == [len(tokens) for tokens in wanted]
    assert min(map(len, wanted)) < NEW_TOKENS  # one that ended before it had to
    for tokens, length, each in zip(found["tokens"], found["length"], wanted, strict=True):
        np.testing.assert_array_equal(tokens[:length], each)
    if kind == "greedy":
        assert found["text"].tolist() == [str(golden[f"text_{i}"]) for i in range(len(prompts))]


def test_logits_are_those_of_transformers(golden: dict[str, np.ndarray]) -> None:
    logits_agree(GPT2, golden)


def test_names_of_before(copy: Path, golden: dict[str, np.ndarray]) -> None:
    """The first files had no `transformer.`, the masks among the weights, and tied ones twice."""

    def older(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        arrays = {name.removeprefix("transformer."): array for name, array in arrays.items()}
        arrays["lm_head.weight"] = arrays["wte.weight"].copy()
        return arrays | {"h.0.attn.bias": np.ones((1, 1, 48, 48), np.float32)}

    logits_agree(renamed(copy, older), golden)


def test_a_head_of_its_own(copy: Path, golden: dict[str, np.ndarray]) -> None:
    def untied(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return arrays | {"lm_head.weight": 2 * arrays["transformer.wte.weight"]}

    network = load_exported_model(changed(renamed(copy, untied), tie_word_embeddings=False))[0].network
    found = np.asarray(logits(network, golden["prompt_3"][None]))[0]
    np.testing.assert_allclose(found, 2 * golden["logits_3"], rtol=1e-4, atol=2e-4)


def test_an_empty_prompt_begins_with_the_start(pipeline: InferencePipeline) -> None:
    found = pipeline.call("generate", num_rows=2, prompt=["", "A"], num_tokens=NEW_TOKENS)
    assert found["tokens"][0, 0] == json.loads((GPT2 / "config.json").read_text())["bos_token_id"]


def test_a_row_is_the_same_alone(pipeline: InferencePipeline, prompts: list[str]) -> None:
    said = {"num_tokens": [5, 16, 9, 1], "temperature": 0.7, "top_k": [3, 300, 1, 7]}
    whole = pipeline.call("generate", num_rows=4, rngs=3, prompt=prompts, **said)
    # The first row has the same key in both.
    first = {name: value if isinstance(value, float) else value[0] for name, value in said.items()}
    alone = pipeline.call("generate", num_rows=1, rngs=3, prompt=prompts[0], **first)
    assert alone["text"].tolist() == whole["text"][:1].tolist()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"prompt": "A " * 50}, "prompt: expected at most 47 tokens, got"),
        (
            {"prompt": "A A", "num_tokens": 47},
            "num_tokens: expected at most 48 tokens together with the prompt",
        ),
        ({"prompt": 3}, "prompt: expected a string, got 3"),
        ({"prompt": "A", "top_k": 0}, "top_k: expected from 1, got 0"),
        ({"prompt": "A", "top_p": 0}, "top_p: expected above 0, at most 1, got 0"),
        ({"prompt": "A", "temperature": -1}, "temperature: expected from 0, got -1"),
        ({"prompt": "\ud800"}, "prompt: expected Unicode"),
    ],
)
def test_what_cannot_be_said(pipeline: InferencePipeline, said: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipeline.call("generate", num_rows=1, **said)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM.* is not run here.*GPT2LMHeadModel"),
        ({"architectures": None}, "is None of transformers"),
        ({"activation_function": "relu"}, "activation_function: expected 'gelu_new' or 'gelu_pytorch_tanh'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx: expected False"),
        ({"n_inner": 17}, "n_inner: expected 64, four times n_embd, got 17"),
        ({"n_head": 3}, "num_heads: expected a divisor"),
        ({"n_embd": "16"}, "features: expected an integer from 1 to 65536, got '16'"),
        ({"eos_token_id": [1, 2]}, "eos_token_id: expected one symbol"),
        ({"vocab_size": 299, "eos_token_id": 299}, "end: expected an integer from 0 to 298"),
    ],
)
def test_configs_that_are_not_supported(copy: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_exported_model(changed(copy, **settings))


def test_weights_that_do_not_fit(copy: Path) -> None:
    with pytest.raises(CheckpointMismatchError, match=r"transformer\.wpe\.weight is \[48, 16\]"):
        load_exported_model(changed(copy, n_positions=47))


def test_weights_that_are_not_there(copy: Path) -> None:
    (copy / WEIGHTS).rename(copy / "pytorch_model.bin")
    with pytest.raises(
        CheckpointNotFoundError, match=r"no model.safetensors; pytorch_model.bin .*from_pretrained"
    ):
        load_exported_model(copy)


def test_a_step_or_a_variant(copy: Path) -> None:
    with pytest.raises(InputError, match=r"step: .* which has no training steps"):
        load_exported_model(copy, step=3)
    with pytest.raises(InputError, match="variant: expected none but of diffusers"):
        load_exported_model(copy, variant="fp16")


def test_an_export_has_the_tokenizer(copy: Path, tmp_path: Path, golden: dict[str, np.ndarray]) -> None:
    export = export_model(load_exported_model(copy)[0], tmp_path / "export", step=0, image_range=None)
    assert json.loads((export / "config.json").read_text())["tokenizer"] == "tokenizer.json"
    shutil.rmtree(copy)
    moved = export.rename(tmp_path / "moved")
    said = {"prompt": str(golden["prompts"][3]), "num_tokens": NEW_TOKENS, "greedy": True}
    found = load_pipeline(moved, batch_size=1).call("generate", num_rows=1, **said)
    assert found["text"].tolist() == [str(golden["text_3"])]


def test_without_a_tokenizer_callers_give_tokens(copy: Path, golden: dict[str, np.ndarray]) -> None:
    (copy / "tokenizer.json").unlink()
    pipeline = load_pipeline(copy, batch_size=1)
    tokens = golden["prompt_3"][None]
    most = 48 - tokens.shape[1]  # with the prompt; the row ends before
    said = {"prompt_length": tokens.shape[1], "num_tokens": most, "greedy": True}
    found = pipeline.call("generate", tokens=tokens, **said)
    np.testing.assert_array_equal(found["tokens"][0, : found["length"][0]], golden["greedy_3"])
    assert "text" not in found
