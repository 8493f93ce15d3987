"""The executor: everything that compiles, pads, shards, places and transfers."""

from artifex.generative_models.inference.executor.executor import Executor
from artifex.generative_models.inference.executor.shared import executor_for

__all__ = ["Executor", "executor_for"]
