"""What can go wrong with a request, and how each protocol says so.

ArtifexError
├── UnauthorizedError     no API key, or a wrong one
├── NotFoundError         no such model, version or page
├── TooLargeError         a body or a number of rows over the server's limit
├── TooSlowError          a body that does not arrive in time
├── UnsupportedMediaError a content type that no body has
├── UnsupportedError      a part of the protocol that this server does not have
├── UnloadableError       a model that cannot be loaded
└── NotReadyError         a model that is not loaded yet or any more, or a server that drains
"""

from __future__ import annotations

from artifex.generative_models.core.errors import (
    ArtifexError,
    ClosedError,
    DeadlineExceededError,
    InputError,
    NonFiniteError,
    Overloaded,
)
from artifex.serving.observe.events import log_event


class UnauthorizedError(ArtifexError):
    """There is no API key, or a wrong one."""


class NotFoundError(ArtifexError):
    """There is no such model, version or page."""


class TooLargeError(ArtifexError):
    """A body or a number of rows is over the server's limit."""


class TooSlowError(ArtifexError):
    """A body does not arrive in time."""


class UnsupportedMediaError(ArtifexError):
    """A body's content type is none that is taken."""


class UnsupportedError(ArtifexError):
    """The protocol has it, this server does not."""


class UnloadableError(ArtifexError):
    """A model cannot be loaded."""


class NotReadyError(ArtifexError):
    """A model is not loaded yet or any more, or the server drains."""


_STATUS: dict[type[Exception], tuple[int, str]] = {
    InputError: (400, "INVALID_ARGUMENT"),
    UnsupportedMediaError: (415, "INVALID_ARGUMENT"),
    UnauthorizedError: (401, "UNAUTHENTICATED"),
    NotFoundError: (404, "NOT_FOUND"),
    TooSlowError: (408, "DEADLINE_EXCEEDED"),
    TooLargeError: (413, "RESOURCE_EXHAUSTED"),
    Overloaded: (429, "RESOURCE_EXHAUSTED"),
    NonFiniteError: (500, "INTERNAL"),
    UnsupportedError: (501, "UNIMPLEMENTED"),
    UnloadableError: (503, "FAILED_PRECONDITION"),
    NotReadyError: (503, "UNAVAILABLE"),
    ClosedError: (503, "UNAVAILABLE"),
    DeadlineExceededError: (504, "DEADLINE_EXCEEDED"),
}


def explain(error: Exception) -> tuple[int, str, str]:
    """An error as the protocols tell it.

    Args:
        error: Any exception. What is not raised on purpose goes to the server's log, and is told as an
            internal error and nothing else.

    Returns:
        The HTTP status, the name of the gRPC status, and the message.
    """
    for kind in type(error).__mro__:
        if kind in _STATUS:
            return *_STATUS[kind], str(error)
    log_event("internal error", error)
    return 500, "INTERNAL", "internal error; the server's log tells more"
