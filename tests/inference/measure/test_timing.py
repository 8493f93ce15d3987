import gc
import math
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from artifex.generative_models.core.errors import InputError, InputTypeError
from artifex.generative_models.inference.measure import timing
from artifex.generative_models.inference.measure.timing import Timing, time_calls

READY = np.zeros(1)


class Clock:
    """Stands still, except when told how long something took."""

    def __init__(self):
        self.now = 0.0

    def taking(self, *seconds):
        """A function whose calls take so long, the last of them again and again; it counts them."""

        def call():
            self.now += seconds[min(call.count, len(seconds) - 1)]
            call.count += 1
            return READY

        call.count = 0
        return call


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def test_a_call_lasts_until_every_leaf_is_there(clock):
    class Late:
        def block_until_ready(self):
            clock.now += 1
            return self

    timed = time_calls(lambda: {"ready": READY, "late": [Late(), (Late(), 3.0)]}, 4, warmup_runs=0)
    assert timed.first_seconds == 2
    assert timed.seconds.tolist() == [2] * 4


def test_dropping_the_results_is_not_timed(clock):
    class Large:
        def __del__(self):
            clock.now += 100

    timed = time_calls(lambda: (READY, Large()), 4, warmup_runs=0)
    assert clock.now > 400
    assert timed.seconds.max() < 1e-3


@pytest.mark.parametrize(
    ("seconds", "warmup_runs", "made"),
    [
        ((9.0, 0.01), 0, 10),
        ((9.0, 0.01), 10, 10),
        ((9.0, 0.01), 30, 30),
        ((9.0, *[0.02] * 7, 0.01), 10, 13),
        ((9.0, *[0.01 * 0.9**i for i in range(99)]), 10, 60),  # never stable
        ((9.0, 5.0), 2, 3),  # no time for more
    ],
)
def test_warming_up_ends_when_calls_get_no_faster(clock, seconds, warmup_runs, made):
    call = clock.taking(*seconds)
    timed = time_calls(call, 7, warmup_runs=warmup_runs)
    assert timed.warmup_runs == made
    assert call.count == 1 + made + 7
    assert timed.first_seconds == 9


@pytest.mark.parametrize(("num_runs", "made"), [(100, 6), (4, 4)])
def test_slow_calls_end_early_but_not_before_the_sixth(clock, num_runs, made):
    timed = time_calls(clock.taking(10.0), num_runs, warmup_runs=0, settle_seconds=0, max_seconds=1)
    assert len(timed.seconds) == made
    assert timed.warmup_runs == 0


def test_a_clock_too_coarse_gives_its_resolution(clock):
    timed = time_calls(lambda: READY, 6, warmup_runs=0)
    assert 0 < timed.median < 1e-3
    assert timed.noise == 0


@pytest.mark.parametrize("num_runs", range(6, 300))
def test_the_interval_holds_the_median_in_95_of_100_cases(num_runs):
    ranks = np.random.default_rng(0).permutation(num_runs) + 1.0
    low, high = map(int, Timing(ranks, 0, 0).interval)
    assert low + high == num_runs + 1
    # The median lies above rank k and below rank k' of n draws, where i draws of n fall below it.
    cases = sum(math.comb(num_runs, i) for i in range(low, high))
    assert cases / 2**num_runs >= 0.95


def test_statistics_of_one_call():
    timed = Timing(np.array([2.0]), 3.0, 0)
    assert (timed.median, timed.interval, timed.noise, timed.is_reliable) == (2, (2, 2), 0, False)


def test_drift_is_noise_that_the_interval_does_not_see():
    seconds = np.linspace(1, 1.3, 200)
    low, high = Timing(seconds, 0, 0).interval
    assert (high - low) / 2 < 0.05
    assert Timing(seconds, 0, 0).noise == pytest.approx(0.15 / 2 / 1.15, rel=0.01)
    assert not Timing(seconds, 0, 0).is_reliable
    assert Timing(np.random.default_rng(0).permutation(seconds), 0, 0).is_reliable


@pytest.mark.parametrize(
    ("count", "spread", "reliable"), [(6, 0.04, True), (5, 0.04, False), (6, 0.2, False)]
)
def test_reliable_takes_six_calls_and_little_noise(count, spread, reliable):
    timed = Timing(1 + spread * (np.arange(count) % 2), 0, 0)
    assert timed.is_reliable == reliable


@pytest.mark.parametrize("was_on", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_the_garbage_collector_is_kept_out_and_comes_back(was_on, fails):
    seen = []

    def call():
        seen.append(gc.isenabled())
        if fails and len(seen) == 3:
            raise RuntimeError
        return READY

    (gc.enable if was_on else gc.disable)()
    try:
        if fails:
            with pytest.raises(RuntimeError):
                time_calls(call, 5)
        else:
            time_calls(call, 5)
        assert gc.isenabled() == was_on
    finally:
        gc.enable()
    assert not any(seen)


@pytest.mark.parametrize(
    ("bad_call", "note"),
    [(1, "the first call"), (4, "warm-up run 3"), (11, "warm-up run 10"), (14, "run 3 of 5")],
)
def test_what_the_function_raises_passes_on_with_a_note(clock, bad_call, note):
    error = ZeroDivisionError("now and then")
    well = clock.taking(0.01)

    def call():
        if well.count + 1 == bad_call:
            raise error
        return well()

    with pytest.raises(ZeroDivisionError) as caught:
        time_calls(call, 5)
    assert caught.value is error
    assert error.__notes__ == [f"raised in {note}"]


@pytest.mark.parametrize("result", [None, 3.0, "text", {}, [1, 2], object(), iter([READY])])
def test_results_that_nothing_waits_for_are_refused(result):
    with pytest.raises(InputTypeError, match="expected it to return a JAX or NumPy array"):
        time_calls(lambda: result, 5)


@pytest.mark.parametrize("result", [READY, jnp.zeros(2), {"a": 1.0, "b": (jnp.zeros(2), None)}])
def test_a_tree_with_an_array_is_enough(result):
    assert len(time_calls(lambda: result, 2, warmup_runs=0).seconds) == 2


@pytest.mark.parametrize(
    ("fn", "arguments", "error", "message"),
    [
        (READY, {}, InputTypeError, "inference_fn: expected a function without arguments, got array"),
        (None, {}, InputTypeError, "inference_fn: expected a function"),
        (lambda: READY, {"num_runs": 0}, InputError, "num_runs: expected at least 1, got 0"),
        (lambda: READY, {"warmup_runs": -1}, InputError, "warmup_runs: expected at least 0, got -1"),
        (lambda: READY, {"num_runs": 2.5}, InputTypeError, "num_runs: expected an integer, got 2.5"),
        (lambda: READY, {"num_runs": True}, InputTypeError, "num_runs: expected an integer, got True"),
    ],
)
def test_bad_arguments_say_what_was_expected(fn, arguments, error, message):
    with pytest.raises(error, match=message):
        time_calls(fn, **{"num_runs": 5, **arguments})
