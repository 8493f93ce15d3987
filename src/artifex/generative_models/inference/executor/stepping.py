"""Loops as programs: all steps in one executable, or a few at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from artifex.generative_models.core.convolutions import filters_made_before
from artifex.generative_models.core.sampling.loop import Loop

if TYPE_CHECKING:
    from jaxtyping import Array, Int, Key

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
) -> tuple[Any, Int[Array, " rows"], Int[Array, ""]]:
    """Takes steps until all rows are done, but no more than `most`; rows that are done stay as they are.

    Returns:
        The state, the step after which each row was not finite, and how many rows are not done.
    """

    def may_go_on(carried: Any) -> Array:
        state, _, taken = carried
        return (taken < most) & ~jnp.all(loop.done(inputs, state))

    def go_on(carried: Any) -> Any:
        state, broken, taken = carried
        done = loop.done(inputs, state)
        following = loop.step(model, keys, inputs, state)
        state = jax.tree.map(lambda old, new: jnp.where(_wide(done, new), old, new), state, following)
        newly = ~done & (broken == FINE) & ~_finite_rows(state, len(done))
        return state, jnp.where(newly, state.step, broken), taken + 1

    start = (state, broken, jnp.zeros((), jnp.int32))
    with filters_made_before(model):
        state, broken, _ = jax.lax.while_loop(may_go_on, go_on, start)
    return state, broken, jnp.sum(~loop.done(inputs, state), dtype=jnp.int32)


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


class Given(NamedTuple):
    """What a loop's executables are compiled for.

    Args:
        arguments: The flat arguments, or their shapes.
        shardings: Where each of them lies.
        rows: Where rows lie.
        everywhere: Where what is not of one row lies.
    """

    arguments: Sequence[Any]
    shardings: Sequence[jax.sharding.Sharding]
    rows: jax.sharding.Sharding
    everywhere: jax.sharding.Sharding


def parts(loop: Loop, opened: Opened, compiled_for: Given) -> dict[str, Callable[[], jax.stages.Lowered]]:
    """What `Stepped` is made of, by name, to be compiled; each is traced when it is called.

    The state is an argument that each step's result takes the place of, so it is held once.

    Args:
        loop: The loop.
        opened: Gives the model, keys, inputs and what follows them, of flat arguments.
        compiled_for: The flat arguments.
    """
    arguments, shardings, rows, everywhere = compiled_for

    def start(*given: Any) -> Any:
        model, keys, inputs, _ = opened(*given)
        return loop.init(model, keys, inputs), never_broken(len(keys))

    def steps(most: Any, carried: Any, *given: Any) -> Any:
        model, keys, inputs, _ = opened(*given)
        before, broken = carried
        state, broken, left = advance(loop, model, keys, inputs, before, broken, most)
        return (state, broken), left, jnp.copy(broken), jnp.copy(state.step)

    def look(carried: Any, *given: Any) -> Any:
        model, _, inputs, _ = opened(*given)
        return loop.value(model, inputs, carried[0])

    most = jax.ShapeDtypeStruct((), jnp.int32)
    carried = functools.cache(lambda: jax.eval_shape(start, *arguments))
    compile_start = jax.jit(start, in_shardings=tuple(shardings), out_shardings=rows)
    compile_steps = jax.jit(
        steps,
        donate_argnums=1,
        in_shardings=(everywhere, rows, *shardings),
        out_shardings=(rows, everywhere, rows, rows),
    )
    compile_look = jax.jit(look, in_shardings=(rows, *shardings), out_shardings=rows)
    return {
        "start": lambda: compile_start.lower(*arguments),
        "steps": lambda: compile_steps.lower(most, carried(), *arguments),
        "look": lambda: compile_look.lower(carried(), *arguments),
    }


class Stepped:
    """A loop's executables in parts, for one batch size: to begin, to take steps, and to look.

    Args:
        start: As `parts` names it, and so are the others, compiled.
    """

    def __init__(self, start: Any, steps: Any, look: Any):
        self._start, self._steps, self._look = start, steps, look

    @property
    def memory(self) -> Any:
        """The compiler's figures of a step."""
        return self._steps.memory_analysis()

    def run(self, arguments: Sequence[Any], every: int) -> Iterator[tuple[Progress, np.ndarray]]:
        """Takes steps, so many at a time, and looks after each time; the next are taken meanwhile.

        Args:
            arguments: The flat arguments.
            every: Steps between two looks.

        Yields:
            What was seen, and of each row the step after which it was not finite, or -1.
        """
        most = np.int32(every)
        carried, *told = self._steps(most, self._start(*arguments), *arguments)
        left = 1
        while left:
            seen = self._look(carried, *arguments), *told
            for leaf in jax.tree.leaves(seen):
                leaf.copy_to_host_async()
            carried, *told = self._steps(most, carried, *arguments)  # none, where no row is left
            outputs, left, broken, steps = jax.tree.map(np.asarray, seen)
            yield Progress(outputs, steps, int(left)), broken


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


def _wide(flags: Array, like: Array) -> Array:
    return flags.reshape(-1, *[1] * (like.ndim - 1))


def _finite_rows(state: Any, num_rows: int) -> Array:
    finite = jnp.ones(num_rows, bool)
    for leaf in jax.tree.leaves(state):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            finite &= jnp.isfinite(leaf).reshape(num_rows, -1).all(axis=1)
    return finite
