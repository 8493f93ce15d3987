import json
import logging
from itertools import pairwise

import jax
import pytest
from brief import measure_briefly

from artifex.generative_models.core import DeviceManager
from artifex.generative_models.core.errors import InputError
from artifex.generative_models.inference import Executor, benchmark_model
from artifex.generative_models.inference.measure import endpoints as module
from artifex.generative_models.inference.measure.roofline import Ceilings

CEILINGS = Ceilings(matmul_flops_per_second=2e11, copy_bytes_per_second=5e10)


@pytest.fixture
def quick(monkeypatch):
    measure_briefly(monkeypatch.setattr)


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
    assert told["latency"].keys() == row.latency.as_dict().keys() - {"compile_ms"}
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
