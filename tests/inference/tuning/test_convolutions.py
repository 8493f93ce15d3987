"""Which forms of convolutions tuning takes."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from artifex.generative_models.core import Endpoint, TensorSpec
from artifex.generative_models.core.convolutions import PLAIN, ConvShape, forms_for
from artifex.generative_models.core.nn import Conv3x3
from artifex.generative_models.inference import Executor
from artifex.generative_models.inference.executor.settings import load_tuned
from artifex.generative_models.inference.tuning import bench, convolutions
from artifex.generative_models.inference.tuning.convolutions import Work, fastest_forms, largest_error
from artifex.generative_models.inference.tuning.optimize import tune

SMALL, LARGE = ConvShape(4, 4, 2, 2, False), ConvShape(16, 16, 2, 2, False)
WORK = Work(at_once=2, keeps_filters=True)


class Doubled(nnx.Module):
    def __init__(self):
        self.conv = Conv3x3(1, 2, doubles=True, rngs=nnx.Rngs(0))
        self.last = Conv3x3(2, 1, rngs=nnx.Rngs(1))

    def endpoints(self):
        picture = TensorSpec((8, 8, 1), jnp.float32)
        return {
            "doubled": Endpoint(
                lambda model, _, given: {"y": model.last(model.conv(given["x"]))}, {"x": picture}
            )
        }


SHAPES = {ConvShape(16, 16, 1, 2, True): 2, ConvShape(16, 16, 2, 1, False): 4}


@pytest.fixture
def timed(monkeypatch):
    """Says what each form takes in place of measuring it."""

    def says(seconds):
        monkeypatch.setattr(convolutions, "_times", lambda shape, size, work: seconds(shape, size))

    return says


@pytest.fixture
def faster(monkeypatch, timed):
    """Every form is fast, and so are networks that have one."""
    timed(lambda shape, size: {form: 1 / form for form in forms_for(shape)})
    in_turns = bench.Bench._in_turns

    def with_forms(self, finalists):
        rates = in_turns(self, finalists)
        return {
            candidate: [2.0 if candidate.setting.convolutions else 1.0 for _ in values]
            for candidate, values in rates.items()
        }

    monkeypatch.setattr(bench.Bench, "_in_turns", with_forms)


def test_a_form_is_taken_where_it_is_faster(timed):
    timed(lambda shape, size: {PLAIN: 1.0, 2: 0.8, 4: 0.5 if shape == LARGE and size > 1 else 2.0})
    found = fastest_forms([LARGE, SMALL], [1, 2, 4], WORK)
    assert found == {size: ((SMALL, 2), (LARGE, 4 if size > 1 else 2)) for size in (1, 2, 4)}


def test_a_form_that_does_not_pay_for_many_rows_is_not_tried_for_fewer(timed):
    asked = []

    def seconds(shape, size):
        asked.append((shape, size))
        return {PLAIN: 1.0, 2: 0.5 if size == 4 and shape == LARGE else 1.0, 4: 0.96}

    timed(seconds)
    assert fastest_forms([SMALL, LARGE], [1, 2, 4], WORK) == {4: ((LARGE, 2),)}
    assert asked == [(SMALL, 4), (LARGE, 4), (LARGE, 2)]


@pytest.mark.parametrize("keeps_filters", [True, False])
@pytest.mark.parametrize("doubles", [True, False])
def test_forms_are_measured(doubles, keeps_filters, monkeypatch):
    monkeypatch.setattr(convolutions, "_TURN_SECONDS", 1e-5)
    shape = ConvShape(4, 4, 2, 2, doubles)
    times = convolutions._times(shape, 2, Work(2, keeps_filters))
    assert times.keys() == set(forms_for(shape))
    assert all(seconds > 0 for seconds in times.values())


def test_the_whole_network_takes_them(faster):
    model = Doubled()
    report = tune(model, batch_sizes=(1, 4), endpoint="doubled")
    size = report.chosen.candidate.batch_size
    assert dict(report.chosen.candidate.setting.convolutions) == SHAPES
    assert report.chosen in report.trials
    assert {size: dict(forms) for size, forms in report.convolutions.items()} == {1: SHAPES, size: SHAPES}
    executor = Executor(model)
    assert executor.tuned["doubled"] == report.tuned == load_tuned(executor.tuning_name("doubled"))
    assert dict(report.tuned.settings[1].convolutions) == SHAPES
    rows = {"x": np.random.default_rng(0).normal(size=(size, 8, 8, 1)).astype(np.float32)}
    found = next(executor.map("doubled", [rows]))["y"]
    wanted = next(Executor(model, tuned=False).map("doubled", [rows]))["y"]
    error = np.abs(found - wanted).max()
    assert 0 < error < 1e-4 * wanted.std()


@pytest.mark.parametrize(("errors", "largest"), [([1.0, 0.0], 2), ([1.0, 1.0], None), ([np.inf, 1e-5], 2)])
def test_forms_that_are_too_far_off_are_not_taken(faster, monkeypatch, errors, largest):
    given = iter(errors)
    monkeypatch.setattr(bench, "largest_error", lambda found, wanted: next(given))
    report = tune(Doubled(), batch_sizes=(2,), endpoint="doubled", store=False)
    wanted = {} if largest is None else {shape: min(form, largest) for shape, form in SHAPES.items()}
    assert dict(report.chosen.candidate.setting.convolutions) == wanted
    assert report.chosen in report.trials


def test_narrower_dtypes_are_left_as_they_are(faster):
    report = tune(Doubled(), batch_sizes=(2,), endpoint="doubled", store=False, dtype="bfloat16")
    assert report.convolutions == {}


def test_a_network_that_is_no_faster_stays_as_it_is(timed):
    timed(lambda shape, size: dict.fromkeys(forms_for(shape), 1.0))
    report = tune(Doubled(), batch_sizes=(2,), endpoint="doubled", store=False)
    assert report.convolutions == {}
    assert report.chosen.candidate.setting.convolutions == ()


def test_errors_are_over_the_deviation():
    wanted = {"x": np.array([0.0, 2.0]), "label": np.array([1, 2])}
    assert largest_error({"x": np.array([0.5, 2.0]), "label": np.array([3, 4])}, wanted) == 0.5
    assert largest_error({"x": np.array([np.nan, 2.0]), "label": np.array([1, 2])}, wanted) == np.inf
    assert largest_error(wanted, wanted) == 0
