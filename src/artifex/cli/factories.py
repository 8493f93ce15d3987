"""Models that a command is given as `module:factory`, rather than as a directory."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from artifex.generative_models.core.endpoint import Model, endpoints_of
from artifex.generative_models.core.errors import ArtifexError, ConfigError, InputError, in_one_line
from artifex.generative_models.inference.executor.executor import Executor
from artifex.generative_models.inference.formats.loading import check_image_range
from artifex.generative_models.inference.pipeline import InferencePipeline, picture_pipeline

_FORM = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_factory(model: str) -> bool:
    """Whether a command's model names a factory: what a user types is imported, what a file says never is."""
    return _FORM.fullmatch(model) is not None and not Path(model).exists()


def make(model: str) -> Model | Executor | InferencePipeline:
    """What a factory gives; it is found in the current folder or among what is installed.

    Args:
        model: `module:factory`. The factory takes nothing, and gives a model with endpoints, whose
            `image_range` may say the range of its pixel values, or an executor or a pipeline of one.

    Raises:
        ConfigError: There is no such module or factory, it fails, or it gives something else.
    """
    module_name, _, name = model.partition(":")
    factory = getattr(_imported(model, module_name), name, None)
    if not callable(factory):
        what = f"has no {name!r}" if factory is None else f"has a {name!r} that cannot be called"
        raise ConfigError(f"{model}: module {module_name!r} {what}")
    try:
        made = factory()
        if isinstance(made, Executor | InferencePipeline):
            return made
        is_model = callable(getattr(made, "endpoints", None)) and bool(endpoints_of(made))
    except ArtifexError:
        raise
    except Exception as error:  # of the user's own code, whatever it is
        raise ConfigError(f"{model} failed: {in_one_line(error)}") from error
    if not is_model:
        kind = type(made).__name__
        raise ConfigError(f"{model} gives no model, but {kind}: expected something with endpoints()")
    return made


def make_pipeline(model: str, **settings: Any) -> InferencePipeline:
    """What a factory gives, as a pipeline.

    Args:
        model: As for `make`.
        **settings: As for `picture_pipeline`; they go with a model.

    Raises:
        ConfigError: As for `make`.
        InputError: Settings go with an executor or a pipeline, which has its own.
    """
    made = make(model)
    if isinstance(made, Executor | InferencePipeline):
        refuse_settings(model, made, settings)
        return made if isinstance(made, InferencePipeline) else InferencePipeline(made)
    image_range = check_image_range(getattr(made, "image_range", (0.0, 1.0)))
    return picture_pipeline(made, image_range=image_range, **settings)


def refuse_settings(model: str, made: Any, settings: dict[str, Any]) -> None:
    """Refuses what must be set where an executor or a pipeline is made.

    Raises:
        InputError: Something is set.
    """
    given = [setting for setting, value in settings.items() if value is not None]
    if given:
        raise InputError(f"{model} makes an {type(made).__name__}; {', '.join(given)} must be set there")


def _imported(model: str, name: str) -> ModuleType:
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except Exception as error:  # of the user's own code, whatever it is
        is_missing = isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}.")
        reason = "it is neither here nor installed" if is_missing else in_one_line(error)
        raise ConfigError(f"{model}: cannot import module {name!r}: {reason}") from error
