"""Checks of what families' constructors are given, which may come from a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from artifex.generative_models.core.errors import ConfigError

MAX_FEATURES = 2**16
MAX_LAYERS = 2**10

Arguments = Mapping[str, Any]


def check_integers(
    arguments: Arguments, *names: str, minimum: int = 1, maximum: int = MAX_FEATURES, optional: bool = False
) -> None:
    """Refuses an argument that is no integer of a range, or None if it is optional.

    Raises:
        ConfigError: Names the argument.
    """
    wanted = f"an integer from {minimum} to {maximum}"
    _check(
        arguments, names, optional, wanted, lambda value: type(value) is int and minimum <= value <= maximum
    )


def check_numbers(arguments: Arguments, *names: str) -> None:
    """Refuses an argument that is no number above 0.

    Raises:
        ConfigError: Names the argument.
    """
    wanted = "a number above 0"
    _check(
        arguments, names, False, wanted, lambda value: type(value) in (int, float) and 0 < value < math.inf
    )


def check_flags(arguments: Arguments, *names: str) -> None:
    """Refuses an argument that is neither true nor false.

    Raises:
        ConfigError: Names the argument.
    """
    _check(arguments, names, False, "true or false", lambda value: type(value) is bool)


def check_choice(arguments: Arguments, *names: str, choices: Collection[str], optional: bool = False) -> None:
    """Refuses an argument that is none of the choices, or None if it is optional.

    Raises:
        ConfigError: Names the argument and the choices.
    """
    wanted = f"one of {', '.join(choices)}"
    _check(arguments, names, optional, wanted, lambda value: isinstance(value, str) and value in choices)


def check_divides(divisor: Any, name: str, features: Mapping[str, int]) -> None:
    """Refuses a divisor, of that name, of numbers of features that are no multiples of it.

    Raises:
        ConfigError: Names the divisor and the number.
    """
    check_integers({name: divisor}, name)
    for what, number in features.items():
        if number % divisor:
            raise ConfigError(f"{name}: expected a divisor of {what}, which is {number}, got {divisor}")


def check_transformer(arguments: Arguments) -> None:
    """Refuses arguments of which no `CausalTransformer` can be made.

    Raises:
        ConfigError: Names the argument.
    """
    check_integers(arguments, "features")
    check_integers(arguments, "num_layers", maximum=MAX_LAYERS)
    check_divides(arguments["num_heads"], "num_heads", {"the features": arguments["features"]})
    check_flags(arguments, "tied")
    check_numbers(arguments, "epsilon")


def items(arguments: Arguments, name: str, length: int | None = None) -> dict[str, Any]:
    """The items of a list by names of their own, such as `features[0]`.

    Raises:
        ConfigError: It is no list, it is empty, or it has another length than it should.
    """
    values = arguments[name]
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise ConfigError(f"{name}: expected a list of one item or more, got {values!r}")
    if length is not None and len(values) != length:
        raise ConfigError(f"{name}: expected {length} items, got {len(values)}")
    return {f"{name}[{i}]": value for i, value in enumerate(values)}


def _check(
    arguments: Arguments, names: Sequence[str], optional: bool, wanted: str, holds: Callable[[Any], bool]
) -> None:
    for name in names:
        value = arguments[name]
        if not (holds(value) or (optional and value is None)):
            raise ConfigError(f"{name}: expected {wanted}{' or null' * optional}, got {value!r}")
