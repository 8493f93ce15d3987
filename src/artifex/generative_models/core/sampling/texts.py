"""What callers say to models that go on with text, and the text that they get."""

from __future__ import annotations

import functools
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from artifex.generative_models.core.errors import InputError
from artifex.generative_models.core.fields import Field
from artifex.generative_models.core.sampling.prompts import Continuing
from artifex.generative_models.core.tokenizer import open_tokenizer

PROMPT_OPTION = "max_prompt"
_FEWEST = 16  # tokens of a prompt that there is room for at least


@dataclass(frozen=True)
class ContinuingText:
    """The fields of an endpoint that goes on with text.

    Args:
        tokenizer: The file of the tokenizer.
        context: How many tokens there may be in all.
        num_tokens: New ones where nobody says how many.
        start: The symbol that stands in for an empty prompt; None where a prompt has to be said.
    """

    tokenizer: str
    context: int
    num_tokens: int
    start: int | None = None

    @functools.cached_property
    def _continuing(self) -> Continuing:
        return Continuing(self.context, self.num_tokens)

    @functools.cached_property
    def fields(self) -> Mapping[str, Field]:
        """What may be said."""
        about = "The text to go on with."
        needed = self.start is None
        prompt = Field(str, None, doc=about, example="The") if needed else Field(str, "", doc=about)
        others = {name: field for name, field in self._continuing.fields.items() if name != "prompt_length"}
        return {"prompt": prompt, **others}

    @property
    def provides(self) -> Collection[str]:
        """The tokens, and all that belongs to them."""
        return ("tokens", PROMPT_OPTION, *self._continuing.provides)

    def options(self, said: Mapping[str, Any]) -> dict[str, Hashable]:
        """The room for prompts and for new tokens.

        Raises:
            InputError: A prompt is missing, has a character that no symbol stands for, or is with the new
                tokens longer than what the model sees; or tokenizers is not installed.
        """
        prompts = self._prompts(said)
        longest = max(map(len, prompts))
        if longest >= self.context:
            raise InputError(f"prompt: expected at most {self.context - 1} tokens, got {longest}")
        room = min(max(_FEWEST, 1 << (longest - 1).bit_length()), self.context)
        return {PROMPT_OPTION: room, **self._continuing.options(self._counted(said, prompts))}

    def rows(self, said: Mapping[str, Any], num_rows: int, options: Mapping[str, Any]) -> dict[str, Any]:
        """The tokens of so many rows, and the numbers that go with them."""
        prompts = self._prompts(said)
        tokens = np.zeros((len(prompts), options[PROMPT_OPTION]), np.int32)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt)] = prompt
        tokens = np.ascontiguousarray(np.broadcast_to(tokens, (num_rows, tokens.shape[1])))
        numbers = self._continuing.rows(self._counted(said, prompts), num_rows, options)
        return {"tokens": tokens, **numbers}

    @property
    def texts(self) -> tuple[str, ...]:
        """The text with what was added to it."""
        return ("text",)

    def finished(self, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """The tokens and their `length`, and `text`: what they say, the prompt included, without an end."""
        tokenizer = open_tokenizer(self.tokenizer)
        text = np.empty(len(outputs["tokens"]), object)
        text[:] = [
            tokenizer.decode(row[:length].tolist())
            for row, length in zip(outputs["tokens"], outputs["length"].tolist(), strict=True)
        ]
        return {"text": text, **outputs}

    def _prompts(self, said: Mapping[str, Any]) -> list[tuple[int, ...]]:
        """The tokens of each prompt: one for all rows, or one a row."""
        if "prompt" not in said:
            raise InputError("prompt: expected the text to go on with, got nothing")
        tokenizer = open_tokenizer(self.tokenizer)
        prompts = [tuple(tokenizer.encode(text)) for text in np.ravel(said["prompt"])]
        if self.start is not None:
            return [prompt or (self.start,) for prompt in prompts]
        if not all(prompts):
            raise InputError("prompt: expected a text, got an empty one")
        return prompts

    def _counted(self, said: Mapping[str, Any], prompts: list[tuple[int, ...]]) -> dict[str, Any]:
        """What is said of the tokens in place of the text."""
        lengths = np.array([len(prompt) for prompt in prompts])
        others = {name: value for name, value in said.items() if name != "prompt"}
        return {**others, "prompt_length": lengths if np.ndim(said["prompt"]) else lengths[0]}
