import logging
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx

from artifex.generative_models.core.errors import InputError, InputTypeError
from artifex.generative_models.inference import Executor, benchmark_inference, benchmark_vae_inference
from artifex.generative_models.inference.executor.shared import executor_for
from artifex.generative_models.inference.measure import timing

KEYS = {
    *("mean_ms", "std_ms", "min_ms", "max_ms", "median_ms", "p5_ms", "p95_ms", "p99_ms"),
    *("compile_ms", "num_runs", "warmup_runs", "noise", "is_reliable"),
}


def taking(monkeypatch, seconds):
    """A function whose calls take such times by the clock: the first, 10 to warm up, and those given."""
    lengths = iter([9.0, *[0.001] * 10, *seconds])
    clock = SimpleNamespace(now=0.0)

    def call():
        clock.now += next(lengths)
        return np.zeros(1)

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return call


def test_the_statistics_are_those_of_the_runs(monkeypatch, caplog):
    seconds = np.random.default_rng(0).uniform(0.099, 0.101, 200)
    facts = benchmark_inference(taking(monkeypatch, seconds), 200, batch_size=32)
    assert facts.keys() == KEYS | {"samples_per_second"}
    milliseconds = 1e3 * seconds
    expected = {
        "mean_ms": milliseconds.mean(),
        "std_ms": milliseconds.std(),
        "min_ms": milliseconds.min(),
        "max_ms": milliseconds.max(),
        "median_ms": np.median(milliseconds),
        "p5_ms": np.percentile(milliseconds, 5),
        "p95_ms": np.percentile(milliseconds, 95),
        "p99_ms": np.percentile(milliseconds, 99),
        "compile_ms": 9000,
        "num_runs": 200,
        "warmup_runs": 10,
        "samples_per_second": 32 / np.median(seconds),
    }
    assert {name: facts[name] for name in expected} == pytest.approx(expected)
    assert facts["is_reliable"] is True
    assert not caplog.records


def test_too_few_runs_are_said(monkeypatch, caplog):
    with caplog.at_level(logging.WARNING, "artifex"):
        assert not benchmark_inference(taking(monkeypatch, [0.1] * 5), 5)["is_reliable"]
    assert "5 runs are too few to rely on: time 6 or more" in caplog.text


def test_noise_is_said(monkeypatch, caplog):
    seconds = [0.1, 0.2] * 4
    with caplog.at_level(logging.WARNING, "artifex"):
        facts = benchmark_inference(taking(monkeypatch, seconds), 8)
    assert facts.keys() == KEYS
    assert facts["is_reliable"] is False
    assert facts["noise"] == pytest.approx(1 / 3)
    assert "the median of 8 runs may be off by 33 %" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_runs": 0}, InputError, "num_runs: expected at least 1, got 0"),
        ({"warmup_runs": -1}, InputError, "warmup_runs: expected at least 0, got -1"),
        ({"batch_size": 0}, InputError, "batch_size: expected at least 1, got 0"),
        ({"batch_size": "8"}, InputTypeError, "batch_size: expected an integer, got '8'"),
        ({"inference_fn": 3}, InputTypeError, "inference_fn: expected a function without arguments, got 3"),
        ({"inference_fn": lambda: None}, InputTypeError, "JAX or NumPy array.*got None"),
    ],
)
def test_bad_input_says_what_was_expected(arguments, error, message):
    with pytest.raises(error, match=message):
        benchmark_inference(**{"inference_fn": lambda: np.zeros(1), **arguments})


def test_a_vae_is_encoded_and_decoded(tiny_vae, monkeypatch, capsys):
    calls, run = [], Executor.__call__

    def recording(executor, endpoint, inputs):
        calls.append((endpoint, inputs))
        return run(executor, endpoint, inputs)

    monkeypatch.setattr(Executor, "__call__", recording)
    found = benchmark_vae_inference(tiny_vae, batch_size=4, num_runs=6)
    for facts in found:
        assert facts.keys() == KEYS | {"samples_per_second"}
        assert facts["num_runs"] == 6
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["encode, 4 rows", "decode, 4 rows"]
    assert len(calls) == sum(1 + facts["warmup_runs"] + 6 for facts in found)
    inputs = dict(calls)
    (x,), (z,) = inputs["encode"].values(), inputs["decode"].values()
    assert isinstance(x, jax.Array)
    assert isinstance(z, jax.Array)
    assert (x.shape, z.shape) == ((4, 8, 8, 1), (4, 4))
    assert 0 <= x.min() < x.max() <= 1
    compiled = executor_for(tiny_vae).compile_count
    benchmark_vae_inference(tiny_vae, batch_size=4, num_runs=1, rngs=42)
    benchmark_vae_inference(tiny_vae, batch_size=4, num_runs=1, rngs=nnx.Rngs(43))
    assert executor_for(tiny_vae).compile_count == compiled
    drawn = [inputs["z"] for endpoint, inputs in calls if endpoint == "decode"]
    assert len({z.tobytes() for z in map(np.asarray, drawn)}) == 2  # seeds 42 and 43


def test_a_vae_and_no_rows(tiny_vae):
    with pytest.raises(InputError, match="batch_size: expected at least 1, got 0"):
        benchmark_vae_inference(tiny_vae, batch_size=0)
