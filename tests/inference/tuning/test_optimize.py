import gc
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from artifex.generative_models.core import Endpoint, TensorSpec
from artifex.generative_models.core.errors import InputError, InputTypeError, OutOfDeviceMemoryError
from artifex.generative_models.inference import Executor
from artifex.generative_models.inference.executor import overlap
from artifex.generative_models.inference.executor.overlap import Runner
from artifex.generative_models.inference.executor.settings import load_tuned
from artifex.generative_models.inference.executor.shared import executor_for
from artifex.generative_models.inference.tuning.optimize import optimize_batch_size, tune

ROW = TensorSpec((1024,), jnp.float32)


def third(model, keys, inputs):
    return {"y": inputs["x"] / 3}


THIRD = {"third": Endpoint(third, {"x": ROW})}
tune_third = partial(tune, None, "third", endpoints=THIRD, batch_sizes=(2, 4, 8))


@pytest.fixture
def ran():
    """Endpoints whose executions are recorded, by the number of their rows."""
    sizes = set()

    def record(x):
        sizes.add(len(x))
        return x

    def fn(model, keys, inputs):
        return {"y": jax.pure_callback(record, inputs["x"], inputs["x"])}

    return {"recorded": Endpoint(fn, {"x": ROW})}, sizes


def test_the_choice_is_as_fast_as_any_that_was_measured_again_and_every_trial_is_told():
    told = []
    report = tune_third(progress=told.append)
    again = [trial for trial in report.trials if len(trial.rates) > 5]
    assert report.chosen in again
    assert report.chosen.rows_per_second >= 0.98 * max(trial.rows_per_second for trial in again)
    assert {trial.candidate.batch_size for trial in report.trials} == {2, 4, 8}
    assert report.not_stored is None
    assert {trial.candidate for trial in told} == {trial.candidate for trial in report.trials}
    assert len(told) == len(report.trials)


def test_exhaustive_tuning_tries_every_combination_each_with_its_own_number_in_flight(monkeypatch):
    pool, in_flight = overlap._pool, set()

    def recorded(count):
        in_flight.add(count)
        return pool(count)

    monkeypatch.setattr(overlap, "_pool", recorded)
    report = tune_third(exhaustive=True)
    candidates = [trial.candidate for trial in report.trials]
    tried = {c.executions_in_flight for c in candidates}
    assert len(tried) > 2
    assert in_flight == tried == set(range(1, max(tried) + 1))
    assert {c.batch_size for c in candidates} == {2, 4, 8}
    fusion = {c.setting.fusion for c in candidates}
    assert len(candidates) == len(set(candidates)) == 3 * len(tried) * len(fusion)


@pytest.mark.parametrize("frozen", [False, True])
def test_what_is_frozen_afterwards_is_what_was_before(frozen):
    gc.unfreeze()
    before = [object()]
    if frozen:
        gc.freeze()
    since = [object()]
    tune(None, "third", endpoints=THIRD, batch_sizes=(2,), store=False)
    searched = {id(value) for value in gc.get_objects()}
    assert (id(before) in searched) == (not frozen)
    assert id(since) in searched


def test_the_result_is_used_by_executors_made_later():
    report = tune_third()
    executor = Executor(None, THIRD)
    assert executor.tuned["third"] == report.tuned == load_tuned(executor.tuning_name("third"))
    assert executor.batch_sizes[-1] == report.chosen.candidate.batch_size
    assert Executor(None, THIRD, tuned=False).batch_sizes[-1] == 64


def test_the_result_is_used_by_the_functions_that_share_an_executor(tiny_vae):
    assert executor_for(tiny_vae).tuned == {}
    report = tune(tiny_vae, "decode", batch_sizes=(3, 6))
    assert executor_for(tiny_vae).tuned == {"decode": report.tuned}


def test_nothing_is_kept_where_that_is_not_wanted():
    report = tune_third(store=False)
    assert report.not_stored is not None
    assert Executor(None, THIRD).tuned == {}


def test_a_cache_that_cannot_be_used_does_not_lose_the_report(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ARTIFEX_CACHE_DIR", str(tmp_path / "file"))
    report = tune_third()
    assert report.chosen in report.trials
    assert str(tmp_path / "file") in report.not_stored


def test_what_needs_more_memory_than_there_is_never_runs(ran):
    endpoints, sizes = ran
    row_bytes = 2 * 4 * 1024  # one row in, one out
    in_flight = Executor(None, endpoints).executions_in_flight
    report = tune(
        None,
        "recorded",
        endpoints=endpoints,
        batch_sizes=(2, 4, 8, 16),
        max_memory=7 * row_bytes * in_flight,
    )
    assert report.too_large == 8
    assert sizes == {2, 4}
    assert report.chosen.candidate.batch_size in sizes


def test_no_memory_for_the_smallest_batch(ran):
    endpoints, sizes = ran
    with pytest.raises(OutOfDeviceMemoryError, match="no memory for a batch of 2"):
        tune(None, "recorded", endpoints=endpoints, batch_sizes=(2, 4), max_memory=1000)
    assert sizes == set()


def test_running_out_of_memory_leaves_the_larger_batches_out(monkeypatch):
    run = Runner.dispatch

    def run_out(self, job, start, stop, size):
        if size > 4:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return run(self, job, start, stop, size)

    monkeypatch.setattr(Runner, "dispatch", run_out)
    report = tune_third()
    assert report.too_large == 8
    assert {trial.candidate.batch_size for trial in report.trials} == {2, 4}


@pytest.mark.parametrize("error", [jax.errors.JaxRuntimeError("INTERNAL: broken"), ValueError("broken")])
def test_any_other_failure_is_passed_on(monkeypatch, error):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(Runner, "dispatch", fail)
    with pytest.raises(type(error), match="broken"):
        tune_third()


def test_the_best_batch_size_is_one_of_the_steps(tiny_vae):
    tried = set()
    size = optimize_batch_size(
        tiny_vae, 12, 4, endpoint="decode", progress=lambda trial: tried.add(trial.candidate.batch_size)
    )
    assert size in tried <= {4, 8, 12}
    assert executor_for(tiny_vae).tuned == {}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_batch_size": 0}, InputError, "max_batch_size: expected at least 1"),
        ({"step": 0}, InputError, "step: expected at least 1"),
        ({"step": -16}, InputError, "step: expected at least 1"),
        ({"step": 1.5}, InputTypeError, "step: expected an integer"),
        ({"max_batch_size": 8, "step": 16}, InputError, "at most max_batch_size, 8, got 16"),
        ({"endpoint": "sing"}, InputError, "no endpoint 'sing'"),
        ({"max_memory": 1}, OutOfDeviceMemoryError, "no memory for a batch of 16"),
    ],
)
def test_bad_input(tiny_vae, arguments, error, message):
    with pytest.raises(error, match=message):
        optimize_batch_size(tiny_vae, **arguments)


@pytest.mark.parametrize("sizes", [(), (0, 2), (2.5,)])
def test_bad_batch_sizes(sizes):
    with pytest.raises(InputError, match="batch_sizes"):
        tune_third(batch_sizes=sizes)
