"""What callers say is checked in one place, and becomes rows a part at a time."""

import json

import numpy as np
import pytest

from artifex.generative_models.core import Endpoint, TensorSpec
from artifex.generative_models.core.errors import InputError, InputTypeError
from artifex.generative_models.core.fields import Field, RowNumbers, Said, checked_fields
from artifex.generative_models.core.sampling.denoising import Denoising
from artifex.generative_models.core.sampling.packing import TABLE_INPUTS, TABLE_OPTIONS
from artifex.generative_models.core.sampling.table import NUM_COLUMNS

SCHEDULER = json.dumps({"_class_name": "DDIMScheduler", "num_train_timesteps": 100})
LABEL = Field(int, minimum=0, maximum=9)
SCALE = Field(float, 1.0, minimum=0)
NAME = Field(str, "a", choices=("a", "b"))
PROMPT = Field(str)
FLAG = Field(bool)


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        (LABEL, 3, 3),
        (LABEL, [1, 2, 3], [1, 2, 3]),
        (LABEL, [7], 7),
        (LABEL, np.array([1, 2, 3], np.uint8), [1, 2, 3]),
        (LABEL, np.array([1, 2, 3], object), [1, 2, 3]),
        (SCALE, 2, 2.0),
        (SCALE, [1, 2.5, 3], [1, 2.5, 3]),
        (SCALE, np.array([0.1], np.float64), float(np.float32(0.1))),
        (NAME, b"b", "b"),
        (NAME, ["a", "b", "a"], ["a", "b", "a"]),
        (NAME, np.array([b"a", b"b", b"b"], object), ["a", "b", "b"]),
        (NAME, np.array(["a", "b", "b"]), ["a", "b", "b"]),
        (PROMPT, "zwölf\0", "zwölf\0"),
        (FLAG, [True, False, True], [True, False, True]),
    ],
)
def test_values_of_a_field(field, value, wanted):
    found = field.checked("it", value, 3)
    assert found.tolist() == wanted
    assert found.dtype.kind in {int: "iu", float: "f", str: "O", bool: "b"}[field.kind]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        (LABEL, 10, "it: expected from 0 to 9, got 10"),
        (LABEL, 1.0, "it: expected an integer from 0 to 9, got 1.0"),
        (LABEL, True, "it: expected an integer from 0 to 9, got True"),
        (LABEL, "3", "it: expected an integer from 0 to 9, got '3'"),
        (LABEL, [1, None, 2], "got None"),
        (LABEL, np.ones(3, np.float32), "got float32"),
        (LABEL, 2**70, "it: expected an integer from 0 to 9"),
        (LABEL, [1, 2], r"it: expected one value, or 3, got shape \[2\]"),
        (LABEL, [], r"got shape \[0\]"),
        (LABEL, [[1], [2, 3], [4]], r"got \[1\]"),
        (SCALE, -1, "it: expected from 0, got -1"),
        (SCALE, float("nan"), "it: expected a finite number, got nan"),
        (SCALE, 1e39, "it: expected a finite number, got inf"),
        (NAME, "c", "it: expected one of a, b, got 'c'"),
        (NAME, 3, "it: expected one of a, b, got 3"),
        (PROMPT, b"\xff", "it: expected UTF-8"),
        (FLAG, 1, "it: expected true or false, got 1"),
    ],
)
def test_values_that_a_field_does_not_take(field, value, words):
    with pytest.raises(InputError, match=words):
        field.checked("it", value, 3)


def test_a_value_of_another_type_is_an_error_of_its_own():
    with pytest.raises(InputTypeError):
        LABEL.checked("it", "three", None)


def test_a_long_text_lengthens_no_other():
    texts = ["a" * 1_000_000, *["b"] * 999]
    found = PROMPT.checked("it", texts, 1000)
    assert found.nbytes == 8 * 1000
    assert found.tolist() == texts


def test_one_value_is_for_all_where_there_is_no_end():
    assert LABEL.checked("it", [3], None) == 3
    with pytest.raises(InputError, match="expected one value, got shape"):
        LABEL.checked("it", [1, 2], None)


def test_rows_of_a_part_are_those_of_the_whole():
    says = Denoising(SCHEDULER, num_labels=4)
    given = {"label": [0, 1, 2, 3, 0], "num_steps": [3, 9, 5, 70, 1], "guidance_scale": 2.0}
    said = Said(says, checked_fields("generate", says.fields, given, 5))
    assert said.options == {"max_steps": 256}
    whole = said.rows(0, 5)
    assert set(whole) == set(says.provides) - set(TABLE_OPTIONS)
    assert whole["table"].shape == (5, 256, NUM_COLUMNS)
    for name, rows in said.rows(2, 4).items():
        np.testing.assert_array_equal(rows, whole[name][2:4])


def test_the_usual_table_has_room_for_the_usual_steps():
    assert Denoising(SCHEDULER, num_steps=20).table_options["max_steps"].default == 64
    assert Denoising(SCHEDULER, num_steps=90).table_options["max_steps"].default == 256


def test_callers_give_what_no_field_makes():
    picture = TensorSpec((4, 4, 1), np.float32)
    inputs = {"x": picture, **TABLE_INPUTS}
    options = {**TABLE_OPTIONS, "twice": False}
    endpoint = Endpoint(lambda: None, inputs, options, says=Denoising(SCHEDULER))
    assert endpoint.given == {"x": picture}
    assert list(endpoint.given_options) == ["twice"]
    assert endpoint.fields == ("x", "num_steps", "sampler", "eta", "twice")


NUMBERS = RowNumbers.of(
    {
        "top_p": Field(float, 1.0, above=0, maximum=1, doc="How much."),
        "label": Field(int, minimum=0, maximum=9),
        "greedy": Field(bool, False),
    },
    {"label": 10},
)


def test_numbers_are_given_as_they_are_said():
    assert {name: (spec.shape, spec.dtype) for name, spec in NUMBERS.inputs.items()} == {
        "top_p": ((), np.float32),
        "label": ((), np.int32),
        "greedy": ((), np.bool_),
    }
    assert NUMBERS.inputs["top_p"].doc == "How much."
    assert list(NUMBERS.provides) == ["top_p", "label", "greedy"]
    said = Said(NUMBERS, checked_fields("it", NUMBERS.fields, {"top_p": [0.5, 1, 0.25]}, 3))
    assert said.options == {}
    rows = said.rows(1, 3)
    assert {name: value.tolist() for name, value in rows.items()} == {
        "top_p": [1, 0.25],
        "label": [10, 10],
        "greedy": [False, False],
    }
    assert {name: value.dtype for name, value in rows.items()} == {
        "top_p": np.float32,
        "label": np.int32,
        "greedy": np.bool_,
    }


def test_numbers_are_the_same_once_more():
    again = RowNumbers(**json.loads(json.dumps({"facts": NUMBERS.facts})))
    assert again == NUMBERS
    assert again.fields == NUMBERS.fields


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "top_p: expected above 0, at most 1, got 0"),
        (1.5, "top_p: expected above 0, at most 1, got 1.5"),
        (float("nan"), "top_p: expected a finite number"),
        ("x", "top_p: expected a number above 0, at most 1, got 'x'"),
    ],
)
def test_a_number_that_must_be_above_another(value, message):
    with pytest.raises(InputError, match=message):
        checked_fields("it", NUMBERS.fields, {"top_p": value}, 3)


@pytest.mark.parametrize("limit", [0.02, 0.05])  # which float32 rounds down, and up
def test_limits_are_rounded_as_values_are(limit):
    assert Field(float, minimum=limit).checked("x", limit, None) == np.float32(limit)
    assert Field(float, maximum=limit).checked("x", limit, None) == np.float32(limit)
    with pytest.raises(InputError, match="above"):
        Field(float, above=limit).checked("x", limit, None)
