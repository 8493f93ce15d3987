import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifex.generative_models.inference.executor.cost import Cost
from artifex.generative_models.inference.executor.settings import Setting, Tuned
from artifex.generative_models.inference.tuning.results import Trial, TuningReport
from artifex.generative_models.inference.tuning.search import Candidate

PLAIN, FUSED = Setting(), Setting(fusion=True)


def trial(size, setting=PLAIN, latency=1.0, rates=(1.0,)):
    return Trial(Candidate(size, setting, 2), 0.5, Cost(10.0, 20.0, 30), 60, latency, rates)


def report(trials, chosen):
    return TuningReport("third", "cpu", "0.10", tuple(trials), chosen, 16, {}, 2.5, None)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1))
def test_the_report_marks_the_trials_that_no_other_beats_in_latency_and_rate(figures):
    trials = [trial(size, latency=latency, rates=(rate,)) for size, (latency, rate) in enumerate(figures, 1)]
    for told in report(trials, trials[0]).as_dict()["trials"]:
        beaten = any(
            latency <= 1e-3 * told["latency_ms"]
            and rate >= told["rows_per_second"]
            and (latency < 1e-3 * told["latency_ms"] or rate > told["rows_per_second"])
            for latency, rate in figures
        )
        assert not (beaten and told["pareto"])
    front = [(t.latency_seconds, t.rows_per_second) for t in report(trials, trials[0]).pareto]
    assert front == sorted(set(front))
    for latency, rate in figures:
        assert any(front_latency <= latency and front_rate >= rate for front_latency, front_rate in front)


def test_a_report_goes_through_json():
    only = trial(8, FUSED, latency=0.25, rates=(30.0, 10.0, 20.0))
    facts = json.loads(json.dumps(report([only], only).as_dict()))
    assert facts["chosen"] == {
        "batch_size": 8,
        "fusion": True,
        "convolutions": [],
        "executions_in_flight": 2,
        "compile_ms": 500.0,
        "memory_bytes": 60,
        "latency_ms": 250.0,
        "rows_per_second": 20.0,
        "rows_per_second_low": 10.0,
        "rows_per_second_high": 30.0,
    }
    assert facts["trials"] == [{**facts["chosen"], "pareto": True}]
    others = {"endpoint", "device_kind", "jaxlib", "too_large", "convolutions", "seconds", "not_stored"}
    assert facts.keys() == others | {"chosen", "trials"}
    assert facts["too_large"] == 16


@pytest.mark.parametrize("order", [1, -1])
def test_smaller_batches_get_the_setting_of_least_latency(order):
    chosen = trial(4, PLAIN, latency=9.0)
    others = [
        trial(2, PLAIN, latency=3.0),
        trial(2, FUSED, latency=2.0),
        trial(1, FUSED, latency=2.0),
        trial(1, PLAIN, latency=1.0),
        trial(4, FUSED, latency=5.0),
        trial(8, FUSED, latency=1.0),
    ]
    tuned = report([*others, chosen][::order], chosen).tuned
    assert tuned == Tuned(4, 2, {1: PLAIN, 2: FUSED, 4: PLAIN})
