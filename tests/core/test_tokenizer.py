"""Text becomes the tokens that transformers makes of it, and they become text."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from artifex.generative_models.core.errors import ConfigError, InputError
from artifex.generative_models.core.tokenizer import Tokenizer, open_tokenizer, tokenizer_in

GPT2 = Path(__file__).parent.parent / "golden" / "gpt2"
FILE = str(GPT2 / "tokenizer.json")


def agrees(tokenizer: Tokenizer) -> None:
    with np.load(GPT2 / "generated.npz") as golden:
        for i, prompt in enumerate(golden["prompts"].tolist()):
            assert tokenizer.encode(prompt) == golden[f"prompt_{i}"].tolist()
            assert tokenizer.decode(golden[f"greedy_{i}"].tolist()) == str(golden[f"text_{i}"])


def test_tokens_and_text_are_those_of_transformers() -> None:
    agrees(open_tokenizer(FILE))


def test_files_of_before_there_was_one(tmp_path: Path) -> None:
    tokenizers.Tokenizer.from_file(FILE).model.save(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"vocab.json", "merges.txt"}
    found = tokenizer_in(tmp_path)
    assert found == str(tmp_path / "vocab.json")
    tokenizer = Tokenizer(found)
    agrees(tokenizer)
    assert tokenizer.encode("A<|endoftext|>") == [*tokenizer.encode("A"), 0]
    shutil.copy(FILE, tmp_path)
    assert tokenizer_in(tmp_path) == str(tmp_path / "tokenizer.json")


def test_a_folder_without_one(tmp_path: Path) -> None:
    assert tokenizer_in(tmp_path) is None


def test_what_a_file_says_of_lengths_is_left_out(tmp_path: Path) -> None:
    stored = tokenizers.Tokenizer.from_file(FILE)
    stored.enable_truncation(2)
    stored.enable_padding(length=5)
    stored.save(str(tmp_path / "tokenizer.json"))
    agrees(Tokenizer(str(tmp_path / "tokenizer.json")))


@pytest.mark.parametrize(
    ("model", "trainer"),
    [
        (tokenizers.models.BPE(), tokenizers.trainers.BpeTrainer(vocab_size=20, show_progress=False)),
        (
            tokenizers.models.WordLevel(unk_token="[UNK]"),
            tokenizers.trainers.WordLevelTrainer(special_tokens=["[UNK]"], show_progress=False),
        ),
    ],
    ids=["which it leaves out", "which it calls unknown"],
)
def test_a_symbol_that_it_does_not_know(model: object, trainer: object, tmp_path: Path) -> None:
    stored = tokenizers.Tokenizer(model)
    stored.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    stored.train_from_iterator(["ab abc b"], trainer)
    stored.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("abc b")
    with pytest.raises(InputError, match="prompt: no symbol stands for 'z'"):
        tokenizer.encode("ab z")


def test_what_is_no_unicode() -> None:
    with pytest.raises(InputError, match="prompt: expected Unicode"):
        open_tokenizer(FILE).encode("\ud800")


def test_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    with pytest.raises(ConfigError, match="is no tokenizer that can be read"):
        Tokenizer(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match="is no tokenizer that can be read"):
        Tokenizer(str(tmp_path / "vocab.json"))


def test_where_tokenizers_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match=r"tokenizers is not installed: pip install 'artifex\[text\]'"):
        Tokenizer(FILE)
