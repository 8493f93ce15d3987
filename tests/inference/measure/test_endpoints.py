import json
import logging
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx

from artifex.generative_models.core import DeviceManager
from artifex.generative_models.core.errors import InputError, InputTypeError
from artifex.generative_models.inference import (
    Executor,
    benchmark_inference,
    benchmark_model,
    benchmark_vae_inference,
)
from artifex.generative_models.inference.executor.shared import executor_for
from artifex.generative_models.inference.measure import endpoints as module
from artifex.generative_models.inference.measure import timing
from artifex.generative_models.inference.measure.roofline import Ceilings
from artifex.generative_models.inference.measure.throughput import measure_throughput

CEILINGS = Ceilings(matmul_flops_per_second=2e11, copy_bytes_per_second=5e10)
KEYS = {
    *("mean_ms", "std_ms", "min_ms", "max_ms", "median_ms", "p5_ms", "p95_ms", "p99_ms"),
    *("compile_ms", "num_runs", "warmup_runs", "noise", "is_reliable"),
}


@pytest.fixture
def quick(monkeypatch):
    """Rounds so short that their figures mean nothing."""
    short = partial(measure_throughput, min_seconds=1e-3, num_rounds=6)
    monkeypatch.setattr(module, "measure_throughput", short)


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


def test_every_endpoint_and_batch_size_is_measured(plain, quick):
    reports = []
    found = benchmark_model(
        plain, num_runs=6, ceilings=CEILINGS, progress=lambda *report: reports.append(report)
    )
    assert [(row.endpoint, row.batch_size) for row in found.rows] == [
        (name, size) for name in ("double", "scaled", "noise") for size in (1, 2, 4, 8)
    ]
    assert found.ceilings == CEILINGS
    assert found.device_kind == DeviceManager().default_device.device_kind
    assert found.num_devices == 1
    assert found.versions["jax"] == jax.__version__
    for row in found.rows:
        assert row.compile_seconds == 0
        assert len(row.latency.seconds) == 6
        assert row.cost == plain.cost(row.endpoint, row.batch_size)
        seconds = row.batch_size / row.throughput.rows_per_second
        computing, moving = row.cost.flops / 2e11, row.cost.bytes_accessed / 5e10
        assert row.roofline.share_of_matmul == pytest.approx(computing / seconds)
        attainable = row.batch_size / max(computing, moving)
        assert row.attainable_rows_per_second == pytest.approx(attainable)
        assert row.noise == max(row.latency.noise, row.throughput.rounds.noise)
    assert reports[0][0] == "ceilings"
    assert reports[-1] == ("ceilings", 12, 12)
    assert {total for _, _, total in reports} == {12}
    assert all(a <= b for (_, a, _), (_, b, _) in pairwise(reports))
    assert ("double, 1 row", 0, 12) in reports
    assert ("scaled, 2 rows", 5, 12) in reports


def test_a_benchmark_goes_through_json(plain, quick):
    found = benchmark_model(plain, endpoints=["double"], batch_sizes=[4, 2, 4], num_runs=6, ceilings=CEILINGS)
    facts = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert [row["batch_size"] for row in facts["rows"]] == [2, 4]
    row, told = found.rows[0], facts["rows"][0]
    assert told["latency"].keys() == KEYS - {"compile_ms"}
    assert told["latency"]["median_ms"] == 1e3 * row.latency.median
    assert told["rows_per_second_low"] <= told["rows_per_second"] <= told["rows_per_second_high"]
    assert told["flops"] == row.cost.flops
    assert told["is_reliable"] == row.is_reliable
    assert facts["ceilings"] == {"matmul_flops_per_second": 2e11, "copy_bytes_per_second": 5e10}


def test_a_model_is_compiled_for_the_sizes_asked_for(tiny_vae, quick):
    found = benchmark_model(
        tiny_vae, endpoints=["decode", "generate"], batch_sizes=[3], num_runs=2, ceilings=CEILINGS
    )
    assert [(row.endpoint, row.batch_size) for row in found.rows] == [("decode", 3), ("generate", 3)]
    assert all(row.compile_seconds > 0 for row in found.rows)
    assert not any(row.is_reliable for row in found.rows)


def test_ceilings_are_measured_where_none_are_given(plain, quick, monkeypatch):
    before_and_after = iter([Ceilings(3, 4), Ceilings(5, 2)])
    monkeypatch.setattr(module, "machine_ceilings", lambda: next(before_and_after))
    found = benchmark_model(plain, endpoints=["double"], batch_sizes=[1], num_runs=1)
    assert found.ceilings == Ceilings(5, 4)
    (row,) = found.rows
    rate = row.cost.flops * row.throughput.rows_per_second
    assert row.roofline.share_of_matmul == pytest.approx(rate / 5)


def test_two_cpu_devices_share_the_ceilings_of_one(tiny_vae, quick):
    spread = Executor(tiny_vae, mesh=DeviceManager().mesh(2), batch_sizes=(8,))
    found = benchmark_model(spread, endpoints=["decode"], num_runs=1, ceilings=CEILINGS)
    (row,) = found.rows
    assert found.num_devices == 2
    seconds = 8 / row.throughput.rows_per_second
    assert row.roofline.share_of_matmul == pytest.approx(2 * row.cost.flops / 2e11 / seconds)


def test_what_does_not_fit_the_device_is_left_out(tiny_vae, quick, caplog):
    executor = Executor(tiny_vae, batch_sizes=(1, 2, 4))
    executor.warmup(["decode"])
    executables = executor._catalog.find("decode", {}).executables

    class Exhausted:
        cost_analysis = executables[4].cost_analysis
        memory_analysis = executables[4].memory_analysis

        def __call__(self, *arguments):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory while trying to allocate")

    executables[4] = Exhausted()
    with caplog.at_level(logging.WARNING, "artifex"):
        found = benchmark_model(executor, endpoints=["decode"], num_runs=1, ceilings=CEILINGS)
    assert [row.batch_size for row in found.rows] == [1, 2]
    assert "decode: 4 rows do not fit the device's memory" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"endpoints": ["double", "encode"]}, "no endpoint 'encode'; there are double, scaled, noise"),
        ({"batch_sizes": [1, 3]}, r"double: batch_sizes: \[3\] are not among the executor's \(1, 2, 4, 8\)"),
        ({"batch_sizes": [0]}, "batch_sizes: expected at least 1, got 0"),
        ({"num_runs": 0}, "num_runs: expected at least 1, got 0"),
    ],
)
def test_impossible_benchmarks_are_refused_before_anything_runs(plain, arguments, message, monkeypatch):
    monkeypatch.setattr(plain, "map", lambda *args, **kwargs: pytest.fail("it ran"))
    with pytest.raises(InputError, match=message):
        benchmark_model(plain, **arguments, ceilings=CEILINGS)
