"""What callers say to models that go on with tokens or pictures."""

from __future__ import annotations

import functools
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from artifex.generative_models.core.errors import InputError
from artifex.generative_models.core.fields import Field, RowNumbers
from artifex.generative_models.core.sampling.choosing import CHOOSING_FIELDS, CHOOSING_UNSAID
from artifex.generative_models.core.sampling.labels import label_fields
from artifex.generative_models.core.specs import Option, TensorSpec

_FEWEST = 16  # new tokens that there is room for at least

# What `Continuing` makes, beside the numbers.
ROOM_INPUT = TensorSpec(("max_new_tokens",), np.bool_, doc="True for each new token that there may be")
ROOM_OPTION = "max_new_tokens"


@dataclass(frozen=True)
class Continuing:
    """The fields of an endpoint that goes on with tokens.

    Args:
        context: How many tokens there may be in all.
        num_tokens: New ones where nobody says how many.
    """

    context: int
    num_tokens: int

    @functools.cached_property
    def _numbers(self) -> RowNumbers:
        return RowNumbers.of(CHOOSING_FIELDS, CHOOSING_UNSAID)

    @functools.cached_property
    def fields(self) -> Mapping[str, Field]:
        """What may be said; how long the prompt is has to be."""
        most = self.context - 1
        return {
            "prompt_length": Field(
                int, None, minimum=1, maximum=most, doc="How many of the tokens are given.", example=1
            ),
            "num_tokens": Field(
                int,
                None,
                minimum=1,
                maximum=most,
                doc=f"How many new tokens there may be; {self.num_tokens} or what fits if not said.",
            ),
            **CHOOSING_FIELDS,
        }

    @functools.cached_property
    def inputs(self) -> dict[str, TensorSpec]:
        """What an endpoint with these fields takes beside its tokens."""
        length = TensorSpec((), np.int32, doc="how many of the tokens are given")
        return {"prompt_length": length, "room": ROOM_INPUT, **self._numbers.inputs}

    @property
    def room_options(self) -> dict[str, Option]:
        """The option that says how many new tokens there is room for."""
        most = max(_FEWEST, 2 * self.context)
        return {ROOM_OPTION: Option(_room_for(self.num_tokens), minimum=1, maximum=most)}

    @property
    def provides(self) -> Collection[str]:
        """All that there is but the tokens."""
        return (*self.inputs, ROOM_OPTION)

    def options(self, said: Mapping[str, Any]) -> dict[str, Hashable]:
        """The room for new tokens.

        Raises:
            InputError: Nobody said how long the prompt is, or with the new tokens it is longer than what the
                model sees.
        """
        length, new = self._lengths(said)
        if np.max(length + new) > self.context:
            raise InputError(
                f"num_tokens: expected at most {self.context} tokens together with the prompt, got "
                f"{np.max(length + new)}"
            )
        return {ROOM_OPTION: _room_for(int(np.max(new)))}

    def _lengths(self, said: Mapping[str, Any]) -> tuple[Any, Any]:
        """How many tokens are given, and how many new ones there may be."""
        if "prompt_length" not in said:
            raise InputError("prompt_length: expected how many of the tokens are given, got nothing")
        length = said["prompt_length"]
        return length, said.get("num_tokens", np.minimum(self.num_tokens, self.context - length))

    def rows(self, said: Mapping[str, Any], num_rows: int, options: Mapping[str, Any]) -> dict[str, Any]:
        """The numbers of so many rows."""
        length, new = (
            np.ascontiguousarray(np.broadcast_to(np.int32(value), (num_rows,)))
            for value in self._lengths(said)
        )
        numbers = {name: value for name, value in said.items() if name in CHOOSING_FIELDS}
        room = np.arange(options[ROOM_OPTION])[None] < new[:, None]
        return {"prompt_length": length, "room": room, **self._numbers.rows(numbers, num_rows, options)}


@dataclass(frozen=True)
class Completing:
    """The fields of an endpoint that draws the lower parts of pictures.

    Args:
        height: Of a picture.
        patch_size: Height of what is drawn together.
        num_labels: Classes that pictures may have; 0 where there are none.
    """

    height: int
    patch_size: int
    num_labels: int

    @functools.cached_property
    def _numbers(self) -> RowNumbers:
        half = self.height // 2 // self.patch_size * self.patch_size
        known = Field(
            int, half, minimum=0, maximum=self.height, doc="How many rows of pixels are kept, from the top."
        )
        fields = {**label_fields(self.num_labels, knows_none=False), "known": known, **CHOOSING_FIELDS}
        return RowNumbers.of(fields, CHOOSING_UNSAID)

    @property
    def fields(self) -> Mapping[str, Field]:
        """What may be said."""
        return self._numbers.fields

    @property
    def inputs(self) -> dict[str, TensorSpec]:
        """What an endpoint with these fields takes beside its pictures."""
        return self._numbers.inputs

    @property
    def provides(self) -> Collection[str]:
        """All of its fields."""
        return self._numbers.provides

    def options(self, said: Mapping[str, Any]) -> dict[str, Hashable]:
        """None.

        Raises:
            InputError: The part that is kept ends within a patch.
        """
        for known in np.unique(said["known"] % self.patch_size).tolist():
            if known:
                raise InputError(f"known: expected a multiple of {self.patch_size}, the height of a patch")
        return {}

    def rows(self, said: Mapping[str, Any], num_rows: int, options: Mapping[str, Any]) -> dict[str, Any]:
        """The numbers of so many rows."""
        return self._numbers.rows(said, num_rows, options)


def _room_for(num_tokens: int) -> int:
    """The power of two that holds so many new tokens."""
    return max(_FEWEST, 1 << (num_tokens - 1).bit_length())
