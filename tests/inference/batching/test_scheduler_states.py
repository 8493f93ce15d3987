"""Whatever is asked of a batcher in whatever order, each request ends once, as it should."""

import collections
import threading
from concurrent.futures import CancelledError, wait

import jax
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    rule,
    run_state_machine_as_test,
)
from machines import Asking
from shared import TIMEOUT

from artifex.generative_models.core.errors import ClosedError, DeadlineExceededError, Overloaded
from artifex.generative_models.core.keys import sample_key
from artifex.generative_models.inference.batching.batcher import Batcher

MAGIC = 13.0  # a row that the device does not bear
MAX_ROWS = 20
SEEDS = (0, 7, 2**32 - 1)

Asked = collections.namedtuple("Asked", ["future", "expected", "fails", "expires", "ended"])


class Requests(Asking):
    """Requests, cancellations and a device that stops and goes on, then an end.

    Args:
        executor: Runs them.
        gate: Stands before its device.
    """

    def __init__(self, executor, gate):
        super().__init__(executor, gate)
        self.num_overloaded = 0
        gate.fault = fail_on_magic

    @initialize(
        max_in_flight=st.integers(1, 3),
        max_delay=st.sampled_from([0, 0, 0.001]),
        max_queued_rows=st.sampled_from([25, 1000]),
        drain=st.booleans(),
    )
    def open(self, max_in_flight, max_delay, max_queued_rows, drain):
        self.drain = drain
        self.batcher = Batcher(
            self.executor, max_in_flight=max_in_flight, max_delay=max_delay, max_queued_rows=max_queued_rows
        )

    @rule(
        n=st.integers(1, MAX_ROWS),
        first=st.integers(14, 1000),
        magic=st.none() | st.integers(0, MAX_ROWS - 1),
        power=st.sampled_from([1, 1, 2]),
        timeout=st.sampled_from([None, None, 0, 600]),
    )
    def double(self, n, first, magic, power, timeout):
        x = np.arange(first, first + n, dtype=np.float32)[:, None] * np.ones(3, np.float32)
        if magic is not None and magic < n:
            x[magic] = MAGIC
        fails = magic is not None and magic < n
        self._submit("double", {"x": x}, 2 * x**power, fails, timeout, power=power)

    @rule(
        n=st.integers(1, MAX_ROWS),
        seed=st.sampled_from(SEEDS),
        by_keys=st.booleans(),
        first=st.integers(0, 5),
    )
    def noise(self, n, seed, by_keys, first):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(sample_key(seed), np.arange(first, first + n))
        expected = np.asarray(self.executor("noise", keys=keys)["y"])
        identity = {"keys": keys} if by_keys else {"seed": seed, "first_row": first}
        self._submit("noise", None, expected, False, None, num_rows=n, **identity)

    def _submit(self, endpoint, inputs, expected, fails, timeout, **arguments):
        try:
            future = self.batcher.submit(endpoint, inputs, timeout=timeout, **arguments)
        except Overloaded:
            self.num_overloaded += 1
            return
        ended = []
        future.add_done_callback(ended.append)
        self.asked.append(Asked(future, expected, fails, timeout == 0, ended))

    def teardown(self):
        if not hasattr(self, "batcher"):
            return
        closing = threading.Thread(target=self.batcher.close, kwargs={"drain": self.drain})
        closing.start()
        self.gate.release()
        closing.join(TIMEOUT)
        assert not closing.is_alive()
        assert not wait([asked.future for asked in self.asked], 0).not_done
        ends = collections.Counter(self._end(number, asked) for number, asked in enumerate(self.asked))
        assert all(asked.ended == [asked.future] for asked in self.asked)
        stats = self.batcher.stats().values()
        assert sum(counters.requests for counters in stats) == ends["answered"]
        assert sum(counters.failed for counters in stats) == ends["failed"]
        assert sum(counters.cancelled for counters in stats) == ends["cancelled"]
        assert sum(counters.expired for counters in stats) == ends["expired"]
        assert sum(counters.overloaded for counters in stats) == self.num_overloaded
        left = [(c.queued_requests, c.queued_rows, c.rows_in_flight) for c in stats]
        assert left == [(0, 0, 0)] * len(left)

    def _end(self, number, asked):
        """How a request ended, which is one of the ways that it may."""
        try:
            outputs = asked.future.result(0)
        except CancelledError:
            assert number in self.cancelled
            return "cancelled"
        except DeadlineExceededError:
            assert asked.expires
            return "expired"
        except ClosedError:
            assert not self.drain
            assert not asked.expires
            return "cancelled"
        except MagicError:
            assert asked.fails
            return "failed"
        assert number not in self.cancelled
        assert not asked.fails
        assert not asked.expires
        np.testing.assert_array_equal(outputs["y"], asked.expected)
        return "answered"


class MagicError(Exception):
    """What the device does not bear was there."""


def fail_on_magic(batch):
    if MAGIC in batch:
        raise MagicError


def test_every_request_ends_once_as_it_should(plain, gate):
    run_state_machine_as_test(
        lambda: Requests(plain, gate),
        settings=settings(
            max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
