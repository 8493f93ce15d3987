"""The exceptions of Artifex.

    ArtifexError
    ├── InputError (ValueError)             an argument's value, shape or range is wrong
    │   └── InputTypeError (TypeError)      an argument's dtype or type is wrong
    ├── ConfigError (ValueError)            a model's config or metadata cannot be used
    │   └── UnknownModelTypeError           no installed family has that name
    ├── CheckpointError
    │   ├── CheckpointNotFoundError         no checkpoint there, or no such step
    │   ├── CheckpointMismatchError         structure, shapes or dtypes differ from the model's
    │   └── CheckpointCorruptError          unreadable, or its contents fail their checksums
    ├── ExportError                         an export cannot be written
    ├── OutputError                         a result cannot be written or resumed
    ├── DeviceError                         the devices that JAX is asked for are not there
    ├── CacheError                          the user's cache directory cannot be used
    ├── Overloaded                          the queue is full: try again later
    ├── DeadlineExceededError (TimeoutError)
    │                                       a request's timeout passed before it was under way
    ├── LostProcessError                    another process of the job has gone
    ├── ClosedError (RuntimeError)          what was asked for, or of, is closed
    ├── NonFiniteError (ArithmeticError)    a model computed a NaN or an infinity
    └── OutOfDeviceMemoryError              not even the smallest batch fits the device

Failures of the operating system stay `OSError`; a bug stays whatever it is.
"""


class ArtifexError(Exception):
    """Base of every error that Artifex raises on purpose."""


class InputError(ArtifexError, ValueError):
    """An argument's value, shape or range is wrong."""


class InputTypeError(InputError, TypeError):
    """An argument's dtype or type is wrong."""


class ConfigError(ArtifexError, ValueError):
    """A model's config or metadata cannot be used."""


class UnknownModelTypeError(ConfigError):
    """No installed family has that name."""


class CheckpointError(ArtifexError):
    """A checkpoint cannot be used."""


class CheckpointNotFoundError(CheckpointError):
    """There is no checkpoint at that place, or none of that step."""


class CheckpointMismatchError(CheckpointError):
    """The checkpoint's structure, shapes or dtypes differ from the model's."""


class CheckpointCorruptError(CheckpointError):
    """The checkpoint cannot be read, or its contents fail their checksums."""


class ExportError(ArtifexError):
    """An export cannot be written."""


class OutputError(ArtifexError):
    """A result cannot be written or resumed."""


class DeviceError(ArtifexError):
    """The devices that JAX is asked for are not there."""


class CacheError(ArtifexError):
    """The user's cache directory cannot be used."""


class Overloaded(ArtifexError):  # noqa: N818
    """The queue is full: try again later."""


class DeadlineExceededError(ArtifexError, TimeoutError):
    """A request's timeout passed before it was under way."""


class LostProcessError(ArtifexError):
    """Another process of the job has gone."""


class ClosedError(ArtifexError, RuntimeError):
    """What was asked for, or of, is closed."""


class NonFiniteError(ArtifexError, ArithmeticError):
    """A model computed a NaN or an infinity."""


class OutOfDeviceMemoryError(ArtifexError):
    """Not even the smallest batch size fits the device's memory."""


def in_one_line(error: BaseException) -> str:
    """What an error of somebody else's code is, and the first line of what it says."""
    said = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
