"""Endpoints that are exact and compile fast, and a gate that holds batches before the device."""

import threading
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import TIMEOUT

from artifex.generative_models.core import Endpoint, TensorSpec
from artifex.generative_models.inference import Batcher, Executor

ROW = TensorSpec((3,), jnp.float32)

Batch = namedtuple("Batch", ["endpoint", "options", "rows", "size"])  # rows: the first number of each


def double(model, keys, inputs, *, power=1):
    return {"y": 2 * inputs["x"] ** power}


def scaled(model, keys, inputs):
    return {"y": inputs["x"] * inputs["temperature"][:, None]}


def noise(model, keys, inputs):
    return {"y": jax.vmap(lambda key: jax.random.bits(key, (3,)))(keys)}


ENDPOINTS = {
    "double": Endpoint(double, {"x": ROW}, {"power": 1}),
    "scaled": Endpoint(scaled, {"x": ROW, "temperature": TensorSpec((), jnp.float32, default=1.0)}),
    "noise": Endpoint(noise, {}),
}


class Permits:
    """Lets pass whoever comes while it is open, and keeps what they bring."""

    def __init__(self):
        self.seen = []
        self._changed = threading.Condition()
        self._permits = float("inf")

    def come(self, what):
        """Waits until it is let pass."""
        with self._changed:
            self.seen.append(what)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._permits, TIMEOUT), "nobody opened the gate"
            self._permits -= 1

    def hold(self):
        """Lets nobody pass any more."""
        with self._changed:
            self._permits = 0

    def release(self, times=float("inf")):
        """Lets so many pass."""
        with self._changed:
            self._permits += times
            self._changed.notify_all()

    def wait(self, times):
        """Waits until so many have come, since the beginning."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.seen) >= times, TIMEOUT), self.seen


class Gate(Permits):
    """Stands before `executor.run`: records batches, and holds them while it is closed.

    Args:
        executor: Whose `run` it takes the place of.
    """

    def __init__(self, executor):
        super().__init__()
        self.fault = lambda rows: None  # called with the first numbers of a batch's rows; may raise
        self._run = executor.run
        executor.run = self

    def __call__(self, job):
        x = job.inputs.get("x", np.zeros((job.num_rows, 1)))[: job.num_rows]
        rows = np.reshape(x, (job.num_rows, -1))[:, 0].tolist()
        self.come(Batch(job.program.name, job.program.options, rows, len(rows)))
        self.fault(rows)
        return self._run(job)

    @property
    def batches(self):
        return self.seen

    @property
    def sizes(self):
        return [batch.size for batch in self.seen]


@pytest.fixture
def compilations():
    """Every compilation that JAX does while a test runs, whoever asked for it."""
    seen = []

    def listen(event, duration, **facts):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(facts)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="session")
def compiled_plain():
    executor = Executor(None, ENDPOINTS, batch_sizes=(1, 2, 4, 8))
    executor.warmup()
    (squared,) = executor.programs("double", power=2)
    for size in executor.batch_sizes:
        executor.prepare(squared, size)
    return executor


@pytest.fixture
def plain(compiled_plain, monkeypatch):
    """`double`, `scaled` and `noise` in batches of 1, 2, 4 and 8, one at a time, whatever the machine."""
    monkeypatch.setattr(compiled_plain._runner, "threaded", False)
    return compiled_plain


@pytest.fixture
def gate(plain):
    """An open gate before the device of `plain`."""
    yield Gate(plain)
    del plain.run


@pytest.fixture
def open_batcher(plain, gate):
    """Makes batchers that end with the test, whatever happens in it."""
    batchers = []

    def make(executor=plain, **settings):
        batchers.append(Batcher(executor, **settings))
        return batchers[-1]

    yield make
    gate.release()
    for batcher in batchers:
        batcher.close(drain=False)


@pytest.fixture
def held(open_batcher, gate):
    """A batcher whose only slot is taken: one row of zeros is held at the gate."""

    def make(*arguments, **settings):
        batcher = open_batcher(*arguments, max_in_flight=1, **settings)
        gate.hold()
        batcher.first = batcher.submit("double", {"x": np.zeros((1, 3), np.float32)})
        gate.wait(1)
        return batcher

    return make
