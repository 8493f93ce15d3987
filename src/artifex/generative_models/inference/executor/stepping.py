"""Loops as programs: all steps in one executable, or a few at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from artifex.generative_models.core.convolutions import filters_made_before
from artifex.generative_models.core.sampling.loop import Loop, Rewritable

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Int, Key

Inputs = Mapping[str, Any]
T = TypeVar("T")

FINE = -1  # in place of the step after which a row was not finite


def run(
    fn: Any, model: Any, keys: Key[Array, " rows"], inputs: Inputs, options: Mapping[str, Hashable]
) -> tuple[Any, Int[Array, " rows"] | None]:
    """What an endpoint gives, and of a loop's rows the step after which they were not finite, or -1."""
    if not isinstance(fn, Loop):
        return fn(model, keys, inputs, **options), None
    state = fn.init(model, keys, inputs)
    state, broken, _ = advance(
        fn, model, keys, inputs, state, never_broken(len(keys)), jnp.iinfo(jnp.int32).max
    )
    return fn.value(model, inputs, state), broken


def never_broken(num_rows: int) -> Int[Array, " rows"]:
    """Of so many rows, that all are finite."""
    return jnp.full(num_rows, FINE, jnp.int32)


def advance(
    loop: Loop,
    model: Any,
    keys: Key[Array, " rows"],
    inputs: Inputs,
    state: Any,
    broken: Int[Array, " rows"],
    most: Any,
    is_held: Bool[Array, " rows"] | None = None,
    is_eager: Any = False,
) -> tuple[Any, Int[Array, " rows"], Bool[Array, " rows"]]:
    """Takes steps until all rows are done, but no more than `most`; rows that are done stay as they are.

    Args:
        is_held: Rows that stay as they are although they are not done; None is none.
        is_eager: Whether to stop as soon as a row is done that was not before.

    Returns:
        The state, the step after which each row was not finite, and which rows are done or held.
    """

    def rests(state: Any) -> Array:
        done = loop.done(inputs, state)
        return done if is_held is None else done | is_held

    num_resting = jnp.sum(rests(state))

    def may_go_on(carried: Any) -> Array:
        state, _, taken = carried
        resting = rests(state)
        goes_on = (taken < most) & ~jnp.all(resting)
        return goes_on if is_eager is False else goes_on & ~(is_eager & (jnp.sum(resting) > num_resting))

    def go_on(carried: Any) -> Any:
        state, broken, taken = carried
        done = rests(state)
        following = loop.step(model, keys, inputs, state)
        state = jax.tree.map(partial(_kept, done), state, following, is_leaf=_is_rewritable)
        newly = ~done & (broken == FINE) & ~_finite_rows(state, len(done))
        return state, jnp.where(newly, state.step, broken), taken + 1

    start = (state, broken, jnp.zeros((), jnp.int32))
    with filters_made_before(model):
        state, broken, _ = jax.lax.while_loop(may_go_on, go_on, start)
    return state, broken, rests(state)


class Progress(NamedTuple):
    """How far a batch of a loop has come.

    Args:
        outputs: Its rows' values, arrays [rows, ...] by name: results of those that are done, else previews.
        steps: Steps that each row has taken, int32 [rows].
        left: How many rows are not done.
    """

    outputs: dict[str, np.ndarray]
    steps: np.ndarray
    left: int

    def first(self, num_rows: int) -> Progress:
        """Of its first rows alone, where the others are padding."""
        outputs = {name: value[:num_rows] for name, value in self.outputs.items()}
        return self._replace(outputs=outputs, steps=self.steps[:num_rows])

    @classmethod
    def joined(cls, parts: Sequence[Progress]) -> Progress:
        """Of batches side by side."""
        if len(parts) == 1:
            return parts[0]
        outputs = {name: np.concatenate([part.outputs[name] for part in parts]) for name in parts[0].outputs}
        return cls(outputs, np.concatenate([part.steps for part in parts]), sum(part.left for part in parts))


Opened = Callable[..., tuple[Any, Any, dict[str, Any], list[Any]]]


class Told(NamedTuple):
    """What a batch tells after some steps.

    Args:
        rests: Which rows are done or held, bool [rows].
        broken: The step after which each row was not finite, or `FINE`, int32 [rows].
        steps: Steps that each row has taken, int32 [rows].
    """

    rests: Any
    broken: Any
    steps: Any


@dataclass(frozen=True)
class Parts:
    """The parts that a loop is compiled in, for one batch size; each is traced when it is asked for.

    What of a batch changes is an argument whose place the result takes, so it is held once.

    Args:
        loop: The loop.
        size: Rows of a batch.
        opened: Gives, for a number of rows, what turns flat arguments into model, keys and inputs.
        named: Gives what an endpoint returned, in the form that callers get it.
        weights: The weights, or their shapes.
        row_avals: Gives, for a number of rows, the shapes of all that follows the weights.
        rows: Where rows lie.
        everywhere: Where what is not of one row lies.
    """

    loop: Loop
    size: int
    opened: Callable[[int], Opened]
    named: Callable[[Any], dict[str, Any]]
    weights: Sequence[Any]
    row_avals: Callable[[int], Sequence[jax.ShapeDtypeStruct]]
    rows: jax.sharding.Sharding
    everywhere: jax.sharding.Sharding

    def start(self) -> jax.stages.Lowered:
        """The state before the first step, of weights and rows."""
        jitted = jax.jit(self._start(self.size), in_shardings=self._shardings, out_shardings=self.rows)
        return jitted.lower(*self._arguments)

    def steps(self) -> jax.stages.Lowered:
        """Takes steps, and gives the state and what to tell of it.

        Its arguments are how many at most, whether to stop when a row is done, which rows are held, the
        state, weights and rows.
        """
        opened = self.opened(self.size)

        def steps(most: Any, is_eager: Any, is_held: Any, carried: Any, *given: Any) -> Any:
            model, keys, inputs, _ = opened(*given)
            before, broken = carried
            state, broken, rests = advance(
                self.loop, model, keys, inputs, before, broken, most, is_held, is_eager
            )
            return (state, broken), Told(rests, jnp.copy(broken), jnp.copy(state.step))

        said = (
            jax.ShapeDtypeStruct((), jnp.int32),
            jax.ShapeDtypeStruct((), jnp.bool_),
            jax.ShapeDtypeStruct((self.size,), jnp.bool_),
        )
        everywhere = (self.everywhere,) * len(said)
        jitted = jax.jit(
            steps,
            donate_argnums=len(said),
            in_shardings=(*everywhere, self.rows, *self._shardings),
            out_shardings=self.rows,
        )
        return jitted.lower(*said, self.carried, *self._arguments)

    def look(self) -> jax.stages.Lowered:
        """What rows give, of the state, weights and rows."""
        opened = self.opened(self.size)

        def look(carried: Any, *given: Any) -> Any:
            model, _, inputs, _ = opened(*given)
            return self.named(self.loop.value(model, inputs, carried[0]))

        jitted = jax.jit(look, in_shardings=(self.rows, *self._shardings), out_shardings=self.rows)
        return jitted.lower(self.carried, *self._arguments)

    def empty(self) -> jax.stages.Lowered:
        """State and rows of zeros, to put rows into."""
        held = self.held  # which places weights that the loop does not read, and so is no part of a trace

        def empty() -> Any:
            return jax.tree.map(lambda aval: jnp.zeros(aval.shape, aval.dtype), held)

        return jax.jit(empty, out_shardings=self.rows).lower()

    def enter(self, num_rows: int) -> jax.stages.Lowered:
        """Puts so many new rows into places, and gives state and rows.

        Its arguments are state and rows, the places, of which those past the last are for padding, weights
        and new rows.
        """
        start = self._start(num_rows)
        fresh = self.row_avals(num_rows)

        def enter(held: Any, places: Any, *given: Any) -> Any:
            def put(old: Array, new: Array) -> Array:
                return old.at[places].set(new, mode="drop", unique_indices=True)

            return jax.tree.map(put, held, (start(*given), list(given[len(self.weights) :])))

        jitted = jax.jit(
            enter,
            donate_argnums=0,
            in_shardings=(
                self.rows,
                self.everywhere,
                *self._shardings[: len(self.weights)],
                *[self.everywhere] * len(fresh),
            ),
            out_shardings=self.rows,
        )
        places = jax.ShapeDtypeStruct((num_rows,), jnp.int32)
        return jitted.lower(self.held, places, *self.weights, *fresh)

    def move(self, size: int) -> jax.stages.Lowered:
        """A batch of another size: of state and rows, and the places that its rows have here."""

        def move(held: Any, places: Any) -> Any:
            return jax.tree.map(lambda leaf: jnp.take(leaf, places, axis=0, mode="clip"), held)

        jitted = jax.jit(move, in_shardings=(self.rows, self.everywhere), out_shardings=self.rows)
        return jitted.lower(self.held, jax.ShapeDtypeStruct((size,), jnp.int32))

    @functools.cached_property
    def carried(self) -> Any:
        """The shapes of what changes from step to step."""
        return jax.eval_shape(self._start(self.size), *self._arguments)

    @property
    def held(self) -> tuple[Any, list[Any]]:
        """The shapes of all that is held of rows: what changes, and the rows as they were given."""
        return self.carried, list(self.row_avals(self.size))

    def _start(self, num_rows: int) -> Callable[..., Any]:
        opened = self.opened(num_rows)

        def start(*given: Any) -> Any:
            model, keys, inputs, _ = opened(*given)
            return self.loop.init(model, keys, inputs), never_broken(num_rows)

        return start

    @property
    def _arguments(self) -> list[Any]:
        return [*self.weights, *self.row_avals(self.size)]

    @property
    def _shardings(self) -> tuple[jax.sharding.Sharding, ...]:
        placed = [leaf.sharding for leaf in self.weights]
        return (*placed, *[self.rows] * len(self.row_avals(self.size)))


Compiled = Callable[..., Any]  # an executable


class Stepped:
    """A batch of a loop from its start to its end, with looks at it.

    Args:
        start: As `Parts` names it, and so are the others, compiled.
    """

    def __init__(self, start: Compiled, steps: Compiled, look: Compiled):
        self._start, self._steps, self._look = start, steps, look

    def run(
        self, arguments: Sequence[Any], num_rows: int, size: int, every: int
    ) -> Iterator[tuple[Progress, np.ndarray, np.ndarray]]:
        """Takes steps, so many at a time, and looks after each time; the next are taken meanwhile.

        Args:
            arguments: The flat arguments.
            num_rows: Rows that are no padding.
            size: All rows.
            every: Steps between two looks.

        Yields:
            What was seen, of each row the step after which it was not finite, or -1, and which are done.
        """
        said = np.int32(every), np.bool_(False), np.arange(size) >= num_rows
        carried, told = self._steps(*said, self._start(*arguments), *arguments)
        left = 1
        while left:
            seen = self._look(carried, *arguments), told
            for leaf in jax.tree.leaves(seen):
                leaf.copy_to_host_async()
            carried, told = self._steps(*said, carried, *arguments)  # none, where no row is left
            outputs, (rests, broken, steps) = jax.tree.map(np.asarray, seen)
            left = int(len(rests) - np.count_nonzero(rests))
            yield Progress(outputs, steps, left).first(num_rows), broken, rests[:num_rows]


def side_by_side(runs: Sequence[Iterator[T]]) -> Iterator[list[T]]:
    """What each of several gives, in turns that all take at the same time, each in a thread of its own.

    One that has ended gives its last again, until all have.
    """
    if len(runs) == 1:
        yield from ([given] for given in runs[0])
        return
    threads = [ThreadPoolExecutor(1, "artifex") for _ in runs]
    given: list[T | None] = [None] * len(runs)
    try:
        while True:
            taken = [thread.submit(next, run, None) for thread, run in zip(threads, runs, strict=True)]
            following = [future.result() for future in taken]
            if all(one is None for one in following):
                return
            given = [last if new is None else new for last, new in zip(given, following, strict=True)]
            yield [one for one in given if one is not None]
    finally:
        for thread in threads:
            thread.shutdown()


def _is_rewritable(part: Any) -> bool:
    return isinstance(part, Rewritable)


def _kept(rests: Array, old: Any, new: Any) -> Any:
    """A part of the state after a step: the old one of rows that rest, except where both are the same."""
    return new if _is_rewritable(new) else jnp.where(_wide(rests, new), old, new)


def _wide(flags: Array, like: Array) -> Array:
    return flags.reshape(-1, *[1] * (like.ndim - 1))


def _finite_rows(state: Any, num_rows: int) -> Array:
    finite = jnp.ones(num_rows, bool)
    for leaf in jax.tree.leaves(state, is_leaf=_is_rewritable):
        if not _is_rewritable(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact):
            finite &= jnp.isfinite(leaf).reshape(num_rows, -1).all(axis=1)
    return finite
