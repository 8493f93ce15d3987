"""What several test files share."""

import threading

import numpy as np

TIMEOUT = 60  # seconds after which a test that waits has failed

# One float32 rounding of a sum of a few thousand products, as batch sizes sum in different orders.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def rows(n, first=1):
    """Rows that tell their numbers: 3 numbers a row, the first of them `first`, `first + 1`, ..."""
    return np.arange(first, first + n, dtype=np.float32)[:, None] * np.ones(3, np.float32)


def submit(batcher, n, first=1, endpoint="double", **arguments):
    """Submits such rows."""
    return batcher.submit(endpoint, {"x": rows(n, first)}, **arguments)


def batcher_threads():
    """The threads of all batchers that are open, those of servers that other tests keep included."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("artifex-batcher")}
