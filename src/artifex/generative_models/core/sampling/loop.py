"""Loops: the bodies of endpoints that take steps, such as denoising."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import jax

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Key

Inputs = Mapping[str, Any]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rewritable:
    """Leaves of a state that a step may write again for rows that rest, such as a cache of keys and values.

    What a step writes there must depend on nothing but the rest of the row's state, which is frozen, so that
    writing it again changes nothing. Whoever drives the loop then takes the new leaves as they are, where
    choosing between old and new would copy them, and does not look through them for numbers that are not
    finite: the rest of the state has to show those.

    Args:
        leaves: A pytree of arrays [rows, ...].
    """

    leaves: Any


@runtime_checkable
class Loop(Protocol):
    """What an endpoint does in steps, each row at its own one.

    A loop is frozen and hashable; all that changes is its state, a pytree of arrays [rows, ...] with an
    attribute `step`, int32 [rows]: the steps that each row has done. Whoever drives it freezes the rows that
    are done, so a row gives the same whichever others it runs beside, and wherever it is stopped and goes on.
    What is random in step s of a row comes from `fold_in(key, s)`.
    """

    def init(self, model: Any, keys: Key[Array, " rows"], inputs: Inputs) -> Any:
        """The state before the first step."""
        ...

    def step(self, model: Any, keys: Key[Array, " rows"], inputs: Inputs, state: Any) -> Any:
        """The state after one more step of every row: one evaluation of the network."""
        ...

    def value(self, model: Any, inputs: Inputs, state: Any) -> dict[str, Array]:
        """What a row gives, arrays [rows, ...]: the result once it is done, before that the best preview."""
        ...

    def done(self, inputs: Inputs, state: Any) -> Bool[Array, " rows"]:
        """Which rows have taken all of their steps."""
        ...
