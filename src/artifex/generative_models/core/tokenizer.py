"""Text to the numbers of symbols and back, by the file that a tokenizer is stored in."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifex.generative_models.core.errors import ConfigError, InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Stored

FILES = ("tokenizer.json", "vocab.json")  # as transformers names them; beside the second is `merges.txt`
_END = "<|endoftext|>"  # of GPT-2, which files of the second kind do not mark


def tokenizer_in(directory: Path) -> str | None:
    """The file that a directory's tokenizer is stored in, if it has one."""
    found = (directory / name for name in FILES)
    return next((str(path.absolute()) for path in found if path.is_file()), None)


def copied_beside(config: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """The config of a model whose tokenizer, if it has one, is copied into a directory and has a name there.

    Raises:
        OSError: It cannot be copied.
    """
    if config.get("tokenizer") is None:
        return dict(config)
    path = Path(config["tokenizer"])
    others = [path.with_name("merges.txt")] if path.name == FILES[1] else []
    for file in (path, *others):
        shutil.copyfile(file, directory / file.name)
    return {**config, "tokenizer": path.name}


def found_beside(config: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """The config of a model in a directory, with the place of its tokenizer, if it has one."""
    name = config.get("tokenizer")
    if not isinstance(name, str):
        return dict(config)
    return {**config, "tokenizer": str(directory.absolute() / Path(name).name)}


def open_tokenizer(path: str) -> Tokenizer:
    """The tokenizer of a file, read once for as long as the file stays as it is.

    Raises:
        InputError: tokenizers is not installed.
        ConfigError: The file cannot be read.
    """
    try:
        facts = Path(path).stat()
    except OSError:
        return Tokenizer(path)  # which says what is wrong
    return _read(path, facts.st_mtime_ns, facts.st_size)


@functools.lru_cache(maxsize=8)
def _read(path: str, changed: int, size: int) -> Tokenizer:
    return Tokenizer(path)


class Tokenizer:
    """What turns text into the numbers of symbols and back.

    Args:
        path: A `tokenizer.json`, or a `vocab.json` with the `merges.txt` of byte-level pairs beside it.

    Raises:
        InputError: tokenizers is not installed.
        ConfigError: The file cannot be read.

    References:
        Sennrich et al., *Neural Machine Translation of Rare Words with Subword Units*, 2016.
        https://arxiv.org/abs/1508.07909
    """

    def __init__(self, path: str):
        self._stored = _opened(path)
        unknown = getattr(self._stored.model, "unk_token", None)
        self._unknown = None if unknown is None else self._stored.token_to_id(unknown)

    def encode(self, text: str) -> list[int]:
        """The numbers of a text's symbols.

        Raises:
            InputError: It has a character that no symbol stands for.
        """
        try:
            found = self._stored.encode(text)
        except TypeError as error:  # of text that is no Unicode, such as half of a surrogate pair
            raise InputError(f"prompt: expected Unicode, got {text!r:.100}") from error
        read = {place for start, stop in found.offsets for place in range(start, stop)}
        unread = [char for place, char in enumerate(text) if place not in read and not char.isspace()]
        if unread:
            raise InputError(f"prompt: no symbol stands for {unread[0]!r}")
        if self._unknown is not None and self._unknown in found.ids:
            start, stop = found.offsets[found.ids.index(self._unknown)]
            raise InputError(f"prompt: no symbol stands for {text[start:stop]!r}")
        return found.ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of symbols; those that mark an end have none, and bytes that are no Unicode are �."""
        return self._stored.decode(list(tokens), skip_special_tokens=True)


def _opened(path: str) -> Stored:
    try:
        import tokenizers  # an extra
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed: pip install 'artifex[text]'") from error
    try:
        if Path(path).name == "vocab.json":
            stored = tokenizers.Tokenizer(
                tokenizers.models.BPE.from_file(path, str(Path(path).with_name("merges.txt")))
            )
            stored.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
            stored.decoder = tokenizers.decoders.ByteLevel()
            if stored.token_to_id(_END) is not None:
                stored.add_special_tokens([_END])
        else:
            stored = tokenizers.Tokenizer.from_file(path)
    except Exception as error:  # tokenizers raises plain ones
        raise ConfigError(f"{path} is no tokenizer that can be read: {error}") from error
    stored.no_padding()
    stored.no_truncation()
    return stored
