"""Whether a model keeps the laws that batching rests on, endpoint by endpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from artifex.generative_models.core.endpoint import Model
from artifex.generative_models.core.errors import InputError, in_one_line
from artifex.generative_models.core.keys import sample_key
from artifex.generative_models.inference.executor.executor import Executor
from artifex.generative_models.inference.executor.program import MANY_CAPTURED
from artifex.generative_models.inference.measure.throughput import example_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROWS = 5
_SIZES = (1, 2, 8)
_TOLERANCE = 1e-3  # of the largest value of an output, for what batch sizes round differently


@dataclass(frozen=True)
class Finding:
    """What was found out about one endpoint.

    Args:
        endpoint: Its name.
        law: What was looked at.
        holds: Whether it is as it should be.
        note: What was seen, in words.
    """

    endpoint: str
    law: str
    holds: bool
    note: str = ""


@dataclass(frozen=True)
class ModelCheck:
    """What was found out about a model; printed, it is a table."""

    findings: tuple[Finding, ...]

    @property
    def holds(self) -> bool:
        """Whether everything is as it should be."""
        return all(finding.holds for finding in self.findings)

    def __str__(self) -> str:
        cells = [("Endpoint", "Law", "Holds", "")]
        cells += [
            (finding.endpoint, finding.law, "yes" if finding.holds else "NO", finding.note)
            for finding in self.findings
        ]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ("   ".join(map(str.ljust, row, widths)).rstrip() for row in cells)
        return "\n".join(lines)


def check(model: Model | Executor | Any, *, endpoints: Iterable[str] | None = None) -> ModelCheck:
    """Runs every endpoint of a model on random rows and finds out whether it keeps the laws.

    A row must not depend on the rows beside it, on the padding or on the batch size; nothing may be drawn
    from a generator within the model; the function must not close over arrays; what comes out must be finite,
    and another number of rows must not compile anything. Layers such as dropout and batch normalisation are
    run in evaluation mode.

    Args:
        model: A model with endpoints, or an executor of one.
        endpoints: Their names; None is all.

    Returns:
        A line for each law and endpoint. An endpoint that cannot be run at all has one line that says why.

    Raises:
        InputError: An unknown endpoint.
        InputTypeError: The model has no endpoints.
    """
    given: dict[str, Any] = {"batch_sizes": _SIZES, "tuned": False}
    executor = model.remade(**given) if isinstance(model, Executor) else Executor(model, **given)
    names = list(executor.endpoints if endpoints is None else endpoints)
    for name in names:
        if name not in executor.endpoints:
            raise InputError(f"no endpoint {name!r}; there are {', '.join(executor.endpoints)}")
    return ModelCheck(tuple(finding for name in names for finding in _findings(executor, name)))


def _findings(executor: Executor, name: str) -> Iterator[Finding]:
    try:
        executor.warmup([name])
        yield from _looked_at(executor, name)
        yield from _run(executor, name)
    except Exception as error:  # of the model's own code, whatever it raises: told in the table
        yield Finding(name, "runs", False, in_one_line(error))


def _looked_at(executor: Executor, name: str) -> Iterator[Finding]:
    captured, draws = executor.captured_bytes(name), executor.reads_random_state(name)
    yield Finding(
        name,
        "closes over no arrays",
        captured < MANY_CAPTURED,
        f"{captured:,} bytes that are no part of the model" if captured else "",
    )
    yield Finding(
        name,
        "draws from its keys alone",
        not draws,
        "it draws from a generator within the model: the same for every row and call" if draws else "",
    )


def _run(executor: Executor, name: str) -> Iterator[Finding]:
    inputs = example_rows(executor, name, _ROWS)
    keys = jax.random.split(sample_key(0), _ROWS)
    draws = executor.draws(name)

    def run(rows: Any) -> dict[str, NDArray[Any]]:
        count = len(np.arange(_ROWS)[rows])
        outputs = executor(
            name,
            {input_name: np.asarray(value)[rows] for input_name, value in inputs.items()},
            keys=keys[rows] if draws else None,
            num_rows=count,
        )
        return {output_name: np.asarray(value) for output_name, value in outputs.items()}

    whole = run(slice(None))
    yield Finding(name, "gives finite numbers", True)  # else it had raised
    compiled = executor.compile_count
    alone = [run(slice(i, i + 1)) for i in range(_ROWS)]
    order = np.arange(_ROWS)[::-1].copy()
    turned = run(order)
    yield _compared(name, "gives a row the same alone", whole, _joined(alone))
    yield _compared(
        name, "gives a row the same beside others", {n: v[order] for n, v in whole.items()}, turned
    )
    anew = executor.compile_count - compiled
    yield Finding(name, "runs any number of rows as it is", not anew, f"{anew} compiled" if anew else "")


def _joined(parts: Iterable[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    listed = list(parts)
    return {name: np.concatenate([part[name] for part in listed]) for name in listed[0]}


def _compared(
    endpoint: str, law: str, wanted: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]]
) -> Finding:
    worst = 0.0
    for name, value in wanted.items():
        scale = max(float(np.abs(value.astype(np.float64)).max(initial=0)), 1e-6)
        apart = np.abs(value.astype(np.float64) - found[name].astype(np.float64)).max(initial=0)
        worst = max(worst, float(apart) / scale)
    note = f"differs by {worst:.2%} of the largest value" if worst > _TOLERANCE else ""
    return Finding(endpoint, law, worst <= _TOLERANCE, note)
