"""How likely a model holds real pictures to be, in bits a number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from artifex.generative_models.core.endpoint import Endpoint
from artifex.generative_models.core.errors import InputError
from artifex.generative_models.core.keys import sample_key
from artifex.generative_models.inference.offline.calling import map_said
from artifex.generative_models.inference.pipeline import InferencePipeline

if TYPE_CHECKING:
    from jaxtyping import Float


class Likelihoods(NamedTuple):
    """What is told of each picture.

    Args:
        name: `bits_per_dim`, or `bits_per_dim_bound` where the model tells a bound of it.
        values: Bits a number.
        about: One line for people.
    """

    name: str
    values: Float[np.ndarray, " pictures"]
    about: str


def likelihood_endpoint(pipeline: InferencePipeline, wanted: bool | None) -> str | None:
    """The endpoint that tells how likely pictures are; None where there is none, or it is not wanted.

    Args:
        pipeline: The model.
        wanted: Whether it is; None is unless that takes long: the endpoint has settings of a solver, or has
            to be told a class.

    Raises:
        InputError: It is wanted, and there is none.
    """
    endpoints = pipeline.executor.endpoints
    for name in ("log_prob", "elbo"):
        made = endpoints.get(name)
        if wanted is not False and made is not None and [*made.given] == ["x"]:
            is_long = {*made.given_options} - {"dequantize"} or len(_classes_to_tell(made)) > 1
            return None if is_long and wanted is None else name
    if wanted:
        raise InputError(f"no endpoint log_prob or elbo of pictures; there are {', '.join(endpoints)}")
    return None


def likelihoods(
    pipeline: InferencePipeline,
    endpoint: str,
    pictures: Callable[[], Iterable[np.ndarray]],
    count: int,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Likelihoods:
    """Bits a number of real pictures, as the endpoint tells them, or -log2 p / numbers; or a bound.

    Where a class has to be told, pictures are of all classes, each as likely as the others. Where the
    endpoint can `dequantize`, pictures fill the cells of their 256 levels.

    Args:
        pipeline: The model.
        endpoint: What tells it, as `likelihood_endpoint` finds it.
        pictures: The pictures, uint8 [rows, H, W, C] a chunk; asked for once a class.
        count: How many there are.
        seed: Of what the endpoint draws.
        progress: Told of how many are done, and of how many.
    """
    executor, made = pipeline.executor, pipeline.executor.endpoints[endpoint]

    def chunks() -> Iterator[dict[str, Any]]:
        for chunk in pictures():
            yield {"x": np.asarray(pipeline.preprocess_fn(chunk))}

    options = {"dequantize": True} if "dequantize" in made.given_options else {}
    key = sample_key(seed) if executor.draws(endpoint, **options) else None
    dims, classes = math.prod(made.inputs["x"].shape), _classes_to_tell(made)
    found = np.full(count, np.inf)
    for done, label in enumerate(classes):
        said, start = options | label, 0
        for outputs in map_said(executor, endpoint, chunks(), said, count, key=key):
            bits = outputs.get("bits_per_dim", -outputs[endpoint] / (dims * math.log(2)))
            part, start = slice(start, start + len(bits)), start + len(bits)
            found[part] = -np.logaddexp2(-found[part] * dims, -bits.astype(np.float64) * dims) / dims
            progress(done * count + start, len(classes) * count)
    values = found + math.log2(len(classes)) / dims  # of all classes alike
    name, what = "bits_per_dim", "bits"
    if endpoint == "elbo":
        name, what = "bits_per_dim_bound", "an upper bound of bits"
    return Likelihoods(
        name, values, f"{what} a number of real pictures; lower is better. {endpoint}: {made.doc}"
    )


def _classes_to_tell(made: Endpoint) -> list[dict[str, int]]:
    """What is said of a class: nothing where it need not be said, else each of them in turn."""
    label = None if made.says is None else made.says.fields.get("label")
    if label is None or label.default is None or label.maximum is None:
        return [{}]
    return [{"label": number} for number in range(int(label.maximum) + 1)]
