"""What pictures are encoded to, and decoded from: `mean` and `z` of a VAE, the codes of a VQ-VAE."""

from __future__ import annotations

from artifex.generative_models.core.errors import InputError
from artifex.generative_models.inference.executor.executor import Executor


def encoded_name(executor: Executor) -> str:
    """The output of `encode` that stands for a picture: the mean of a posterior, else `z` or the only one.

    Raises:
        InputError: There is no such endpoint, or no such output.
    """
    outputs = executor.spec("encode")[1]
    for name in ("mean", "z"):
        if name in outputs:
            return name
    if len(outputs) > 1:
        raise InputError(
            f"encode: expected one output, or one by the name mean or z; it gives {', '.join(outputs)}"
        )
    (name,) = outputs
    return name


def decoded_name(executor: Executor) -> str:
    """The input of `decode` that stands for a picture.

    Raises:
        InputError: There is no such endpoint, or callers must give it something else as well.
    """
    executor.spec("decode")
    given = executor.endpoints["decode"].given
    names = [name for name, spec in given.items() if spec.default is None]
    if len(names) != 1:
        raise InputError(f"decode: expected one input, it takes {', '.join(names) or 'none'}")
    return names[0]
