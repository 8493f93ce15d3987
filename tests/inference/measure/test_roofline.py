import itertools
from types import SimpleNamespace

import pytest

from artifex.generative_models.core.errors import InputError
from artifex.generative_models.inference.executor.cost import Cost
from artifex.generative_models.inference.measure import roofline as module
from artifex.generative_models.inference.measure.roofline import Ceilings, machine_ceilings, roofline

CEILINGS = Ceilings(matmul_flops_per_second=1000, copy_bytes_per_second=100)


@pytest.mark.parametrize(
    ("flops", "bytes_accessed", "seconds", "attainable", "of_roofline", "of_matmul"),
    [
        (4000, 40, 8, 4, 0.5, 0.5),  # intensity 100, above the ridge at 10
        (1000, 100, 2, 1, 0.5, 0.5),  # at the ridge
        (1000, 200, 4, 2, 0.5, 0.25),  # intensity 5, bound by memory
        (0, 200, 8, 2, 0.25, 0),
        (0, 0, 8, 0, 0, 0),
    ],
)
def test_the_nearer_ceiling_bounds(flops, bytes_accessed, seconds, attainable, of_roofline, of_matmul):
    limits = roofline(Cost(flops, bytes_accessed, 0), seconds, CEILINGS)
    assert limits.attainable_seconds == attainable
    assert limits.share_of_roofline == of_roofline
    assert limits.share_of_matmul == of_matmul
    if flops and bytes_accessed:
        rate = min(1000, flops / bytes_accessed * 100)
        assert limits.share_of_roofline == pytest.approx(flops / seconds / rate)


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan")])
def test_no_time_is_refused(seconds):
    with pytest.raises(InputError, match="seconds: expected the time of one execution, above 0"):
        roofline(Cost(1, 1, 1), seconds, CEILINGS)


def test_the_higher_of_two_measurements_counts():
    assert Ceilings(3, 4).highest(Ceilings(5, 2)) == Ceilings(5, 4)


def test_ceilings_count_operations_and_both_ways_of_a_copy(monkeypatch: pytest.MonkeyPatch):
    readings = itertools.count(step=0.25)
    monkeypatch.setattr(module, "_ROUNDS", 1)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(readings)))
    ceilings = machine_ceilings()
    assert ceilings.matmul_flops_per_second == 2 * 2048**3 / 0.25
    assert ceilings.copy_bytes_per_second == 2 * 2**28 / 0.25


def test_the_best_round_counts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_ROUNDS", 3)
    readings = iter([t for i in range(3) for t in (10 * i, 10 * i + (1 if i == 1 else 5))] * 2)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(readings)))
    assert machine_ceilings() == Ceilings(2 * 2048**3, 2 * 2**28)
