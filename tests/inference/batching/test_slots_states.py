"""Whatever is asked of slots in whatever order, each request ends once, with the rows that it has alone."""

import collections
import threading

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule, run_state_machine_as_test
from machines import Asking
from shared import TIMEOUT
from walks import StepGate, walking

from artifex.generative_models.core.errors import ClosedError, DeadlineExceededError, NonFiniteError
from artifex.generative_models.inference import Batcher, Executor

MAX_ROWS = 12
SCALES = (0.9, 0.5)  # of the models that take each other's place
CLOSE = {"rtol": 1e-4, "atol": 1e-4}

Asked = collections.namedtuple(
    "Asked", ["future", "expected", "breaks", "expires", "ended", "previews", "num_steps"]
)


def weights(scale):
    return {"scale": np.asarray(scale, np.float32)}


def alone(compiled, inputs, seed, scale):
    """What a call gives, with the weights of one of the models."""
    executor = Executor(weights(scale), compiled.endpoints, batch_sizes=(MAX_ROWS,))
    assert executor.reuse_executables(compiled)
    job = executor.check("walk", inputs, seed=seed)
    return executor.run(job)["y"][: job.num_rows]


class Requests(Asking):
    """Requests, previews, cancellations, new weights, and steps that stop and go on, then an end.

    Args:
        executor: Runs them.
        gate: Stands before each step.
        compiled: Runs whole requests.
    """

    def __init__(self, executor, gate, compiled):
        super().__init__(executor, gate)
        self.compiled = compiled
        self.scale = 0
        executor.swap(weights(SCALES[0]))

    @initialize(drain=st.booleans())
    def open(self, drain):
        self.drain = drain
        self.batcher = Batcher(self.executor)
        self.batcher.warmup()

    @rule(
        num_steps=st.lists(st.integers(1, 9), min_size=1, max_size=MAX_ROWS),
        seed=st.integers(0, 5),
        breaks=st.none() | st.tuples(st.integers(0, MAX_ROWS - 1), st.integers(1, 9)),
        timeout=st.sampled_from([None, None, 0, 600]),
        every=st.none() | st.integers(1, 4),
    )
    def submit(self, num_steps, seed, breaks, timeout, every):
        inputs = {"num_steps": np.array(num_steps, np.int32), "breaks": np.zeros(len(num_steps), np.int32)}
        expected = [alone(self.compiled, inputs, seed, scale) for scale in SCALES]
        is_broken = breaks is not None and breaks[0] < len(num_steps) and breaks[1] <= num_steps[breaks[0]]
        if is_broken:
            inputs["breaks"][breaks[0]] = breaks[1]
        previews, ended = [], []
        seen = {} if every is None else {"on_preview": previews.append, "every": every}
        future = self.batcher.submit("walk", inputs, seed=seed, timeout=timeout, **seen)
        future.add_done_callback(ended.append)
        self.asked.append(
            Asked(
                future,
                expected,
                breaks if is_broken else None,
                timeout == 0,
                ended,
                previews,
                inputs["num_steps"],
            )
        )

    @rule()
    def replace_the_weights(self):
        self.scale = 1 - self.scale
        self.executor.swap(weights(SCALES[self.scale]))

    def teardown(self):
        if not hasattr(self, "batcher"):
            return
        closing = threading.Thread(target=self.batcher.close, kwargs={"drain": self.drain})
        closing.start()
        self.gate.release()
        closing.join(TIMEOUT)
        assert not closing.is_alive()
        for number, asked in enumerate(self.asked):
            assert len(asked.ended) == 1
            self._check(asked, number in self.cancelled)
        stats = self.batcher.stats().get("walk")
        if stats is not None:
            ends = stats.requests + stats.failed + stats.cancelled + stats.expired
            assert ends == len(self.asked)
            assert (stats.rows_in_flight, stats.queued_rows, stats.places) == (0, 0, 0)

    def _check(self, asked, is_cancelled):
        for preview in asked.previews:
            assert (preview.steps < asked.num_steps[preview.rows]).all()
            assert np.isfinite(preview.outputs["y"]).all()
        if asked.future.cancelled():
            assert is_cancelled
            return
        error = asked.future.exception(0)
        if isinstance(error, DeadlineExceededError):
            assert asked.expires
        elif isinstance(error, ClosedError):
            assert not self.drain
        elif isinstance(error, NonFiniteError):
            assert asked.breaks is not None
            assert f"row {asked.breaks[0]} came out NaN or infinite at step {asked.breaks[1]}:" in str(error)
        else:
            assert error is None
            assert asked.breaks is None
            assert not is_cancelled
            y = asked.future.result(0)["y"]
            first, second = (np.isclose(y, expected, **CLOSE).all(axis=1) for expected in asked.expected)
            assert (first | second).all()


def test_whatever_is_asked_ends_once(monkeypatch):
    executor = Executor(weights(SCALES[0]), {"walk": walking()}, batch_sizes=(1, 2, 4))
    compiled = Executor(weights(SCALES[0]), executor.endpoints, batch_sizes=(MAX_ROWS,))
    compiled.warmup()
    gate = StepGate(monkeypatch)
    run_state_machine_as_test(
        lambda: Requests(executor, gate, compiled),
        settings=settings(
            max_examples=15,
            stateful_step_count=15,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
