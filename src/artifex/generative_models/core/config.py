"""Constructor arguments as JSON, and the table of installed families.

A family is a model class: one of Artifex's own, or one that another package adds under the entry-point group
`artifex.models`. A file can only name one that is installed: nothing that is read is ever imported or
evaluated.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from artifex.generative_models.core.errors import (
    ArtifexError,
    ConfigError,
    UnknownModelTypeError,
    in_one_line,
)

if TYPE_CHECKING:
    from flax import nnx

_GROUP = "artifex.models"
_OWN_FAMILIES = {  # so that they need no installation
    "autoencoder_tiny": "artifex.generative_models.models.autoencoder_tiny:AutoencoderTiny",
    "autoregressive": "artifex.generative_models.models.autoregressive:Autoregressive",
    "classifier": "artifex.generative_models.models.classifier:Classifier",
    "dcgan": "artifex.generative_models.models.dcgan:DCGAN",
    "denoiser": "artifex.generative_models.models.denoiser:Denoiser",
    "ebm": "artifex.generative_models.models.ebm:EBM",
    "gpt2": "artifex.generative_models.models.gpt2:GPT2",
    "realnvp": "artifex.generative_models.models.realnvp:RealNVP",
    "stylegan": "artifex.generative_models.models.stylegan:StyleGAN",
    "vae": "artifex.generative_models.models.vae:VAE",
    "vqvae": "artifex.generative_models.models.vqvae:VQVAE",
}
_MAX_BYTES = 1 << 20


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ConfigError: The file is missing, larger than 1 MiB, not JSON, or not an object.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    if len(text) > _MAX_BYTES:
        raise ConfigError(f"{path} is larger than {_MAX_BYTES} bytes; it should be a few lines of JSON")
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON object for people and programs to read.

    Raises:
        ConfigError: A value is not finite or has no form in JSON.
    """
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path.name}: {error}") from error
    path.write_text(text + "\n")


def model_types() -> list[str]:
    """Names of the installed families."""
    return sorted(_table())


def model_type_of(model: nnx.Module) -> str:
    """The name under which a model's class is installed.

    Raises:
        UnknownModelTypeError: It is not.
    """
    cls = type(model)
    target = f"{cls.__module__}:{cls.__qualname__}"
    for name, entry_point in _table().items():
        if entry_point.value == target:
            return name
    raise UnknownModelTypeError(
        f"{target} is no installed family ({', '.join(model_types())}); add it to the entry-point "
        f"group '{_GROUP}' of your package"
    )


def abstract_model(model_type: str, config: Mapping[str, Any]) -> nnx.Module:
    """A model with the structure that a config describes and no weights: shapes and dtypes alone.

    It is in evaluation mode.

    Args:
        model_type: Name of an installed family.
        config: Arguments of its constructor, `rngs` left out.

    Raises:
        UnknownModelTypeError: No such family; lists those there are.
        ConfigError: An argument is unknown, missing or unusable, or the constructor fails.
    """
    entry_point = _table().get(model_type)
    if entry_point is None:
        raise UnknownModelTypeError(
            f"unknown model_type {model_type!r}; installed are {', '.join(model_types())}"
        )
    try:
        cls = entry_point.load()
    except Exception as error:  # of the family's own code, whatever it is
        raise ConfigError(f"family '{model_type}' cannot be imported: {in_one_line(error)}") from error
    parameters = dict(inspect.signature(cls.__init__).parameters)
    del parameters["self"]
    if parameters.pop("rngs", None) is None:
        raise ConfigError(f"{cls.__name__} of family '{model_type}': its constructor takes no rngs")
    unknown = config.keys() - parameters.keys()
    required = {name for name, parameter in parameters.items() if parameter.default is parameter.empty}
    missing = required - config.keys()
    if unknown or missing:
        raise ConfigError(
            f"config of '{model_type}': unknown keys {sorted(unknown)}, missing keys {sorted(missing)}; "
            f"it takes {', '.join(parameters)}"
        )
    from flax import nnx  # a warm start does without

    # Ours store no generators; and those of Flax, which are traced, take five times as long as all else.
    make_rngs: Callable[[], Any] = _OneKey if cls.__module__.startswith("artifex.") else partial(nnx.Rngs, 0)
    try:
        model = nnx.eval_shape(lambda: cls(**config, rngs=make_rngs()))
    except ArtifexError:
        raise
    except Exception as error:  # of the family's own code, whatever it is
        raise ConfigError(
            f"{cls.__name__} of family '{model_type}' cannot be made: {in_one_line(error)}"
        ) from error
    model.eval()
    return model


class _OneKey:
    """Stands in for random number generators where nothing is drawn: the same key for all weights."""

    def __init__(self) -> None:
        import jax

        self._key = jax.random.key(0)

    def params(self) -> Any:
        """The key."""
        return self._key


def installed_class(module: str, qualname: str) -> type | None:
    """A class of this package, or of a package that has a family; None where there is none.

    What is kept between starts may name one. Modules of other packages are never imported for it.
    """
    packages = {"artifex", *(entry_point.module.partition(".")[0] for entry_point in _table().values())}
    if module.partition(".")[0] not in packages:
        return None
    try:
        found: Any = importlib.import_module(module)
        for name in qualname.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError):
        return None
    return found if isinstance(found, type) else None


@cache
def _table() -> dict[str, EntryPoint]:
    own = (EntryPoint(name, value, _GROUP) for name, value in _OWN_FAMILIES.items())
    return {entry_point.name: entry_point for entry_point in (*entry_points(group=_GROUP), *own)}


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    return float(text) if math.isfinite(float(text)) else _refuse_constant(text)
