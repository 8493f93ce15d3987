from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifex.generative_models.inference.executor.settings import Setting
from artifex.generative_models.inference.tuning.search import Candidate, Space, search

POWERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
GRID = tuple(range(16, 257, 16))


def space(sizes=POWERS, fusion=(False, True), in_flight=(3, 2, 1)):
    return Space(sizes, fusion, in_flight)


def asked(where, rate):
    """What a search measures, in order, and the rates that it got."""
    found = []

    def measure(candidate):
        value = rate(candidate)
        found.append((candidate, value))
        return value

    search(where, measure)
    return found


def fastest(found):
    return max((pair for pair in found if pair[1] is not None), key=lambda pair: pair[1])[0]


def hill(top, steepness=1.0):
    """A rate that falls on both sides of one batch size."""
    return lambda size: 1000 * min(size / top, top / size) ** steepness


@given(
    top=st.sampled_from(GRID),
    fused=st.floats(0.5, 2).filter(lambda value: value != 1),
    in_flight=st.permutations([1.0, 1.3, 1.7]),
)
def test_finds_the_best_of_a_hill_whose_factors_are_independent(top, fused, in_flight):
    def rate(candidate):
        factor = fused if candidate.setting.fusion else 1.0
        factor *= in_flight[candidate.executions_in_flight - 1]
        return hill(top)(candidate.batch_size) * factor

    where = space(GRID)
    found = asked(where, rate)
    assert rate(fastest(found)) == max(rate(candidate) for candidate in where)
    assert set(Counter(candidate for candidate, _ in found).values()) == {1}
    assert len(found) <= len(list(where)) / 6
    assert {candidate for candidate, _ in found} <= set(where)


def test_doubles_until_the_curve_has_turned():
    found = asked(space(fusion=(False,), in_flight=(3,)), lambda c: hill(4)(c.batch_size))
    assert [candidate.batch_size for candidate, _ in found] == [1, 2, 4, 8, 16]


def test_goes_on_past_a_single_dip():
    def rate(candidate):
        return {8: 10.0}.get(candidate.batch_size, 1.0 * candidate.batch_size)

    assert fastest(asked(space(), rate)).batch_size == 256


@pytest.mark.parametrize("limit", [1, 20, 100, 255])
def test_tries_nothing_larger_than_what_did_not_fit(limit):
    def rate(candidate):
        return None if candidate.batch_size > limit else 1.0 * candidate.batch_size

    found = asked(space(), rate)
    refused = [i for i, (_, value) in enumerate(found) if value is None]
    assert len(refused) == 1
    largest = found[refused[0]][0].batch_size
    assert all(candidate.batch_size < largest for candidate, _ in found[refused[0] + 1 :])
    assert fastest(found).batch_size == max(size for size in POWERS if size <= limit)


def test_ends_where_nothing_fits():
    found = asked(space(), lambda candidate: None)
    assert [candidate.batch_size for candidate, _ in found] == [1]


def test_one_candidate_is_measured_once():
    only = space((3,), (False,), (1,))
    assert asked(only, lambda candidate: 1.0) == [(Candidate(3, Setting(fusion=False), 1), 1.0)]


def test_a_failure_is_passed_on():
    def fail(candidate):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        search(space(), fail)
