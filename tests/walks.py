"""A loop that compiles fast, and a gate between its steps."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gate import Permits

from artifex.generative_models.core import Endpoint, TensorSpec
from artifex.generative_models.inference.executor.slot_batch import SlotBatch

START = 2**31 - 1


class State(NamedTuple):
    x: jax.Array
    step: jax.Array


def drawn(keys, step):
    return jax.vmap(lambda key, number: jax.random.normal(jax.random.fold_in(key, number), (3,)))(keys, step)


@dataclass(frozen=True)
class Walk:
    """Takes random steps, as many as a row says, and is infinite after the one that a row says.

    Args:
        checks: Called on the host with the numbers of rows that begin; may raise.
    """

    checks: object = None

    def init(self, model, keys, inputs):
        x = drawn(keys, jnp.full(len(keys), START))
        if self.checks is not None:
            x = x + jax.pure_callback(self.checks, jax.ShapeDtypeStruct((), jnp.float32), inputs["number"])
        return State(x, jnp.zeros(len(keys), jnp.int32))

    def step(self, model, keys, inputs, state):
        x = model["scale"] * state.x + drawn(keys, state.step)
        x = jnp.where((state.step + 1 == inputs["breaks"])[:, None], jnp.inf, x)
        return State(x, state.step + 1)

    def value(self, model, inputs, state):
        return {"y": state.x, "number": inputs["number"]}

    def done(self, inputs, state):
        return state.step >= inputs["num_steps"]


INPUTS = {
    "num_steps": TensorSpec((), np.int32),
    "breaks": TensorSpec((), np.int32, default=0),
    "number": TensorSpec((), np.int32, default=0),
}


def walking(checks=None):
    """The endpoint."""
    return Endpoint(Walk(checks), INPUTS)


class StepGate(Permits):
    """Stands before each step: records its width and rows, and holds it while it is closed."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.programs = []  # of each
        advance = SlotBatch.advance

        def gated(batch, most, is_held, **settings):
            self.programs.append(batch.program)
            self.come((batch.width, int((~is_held).sum())))
            return advance(batch, 1, is_held, **settings)

        monkeypatch.setattr(SlotBatch, "advance", gated)
