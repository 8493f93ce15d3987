"""The loop that draws tokens, around a network that is small enough to be followed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import TIMEOUT

from artifex.generative_models.core import Endpoint, TensorSpec
from artifex.generative_models.core.errors import InputError, NonFiniteError
from artifex.generative_models.core.fields import RowNumbers, checked_fields
from artifex.generative_models.core.sampling.choosing import CHOOSING_FIELDS, CHOOSING_UNSAID
from artifex.generative_models.core.sampling.loop import Rewritable
from artifex.generative_models.core.sampling.prompts import Completing, Continuing
from artifex.generative_models.core.sampling.tokens import Prompt, TokenLoop
from artifex.generative_models.inference import Batcher, Executor
from artifex.generative_models.inference.executor import stepping

VOCAB, LENGTH, END, ROWS = 7, 12, 6, 5
NUMBERS = RowNumbers.of(CHOOSING_FIELDS, CHOOSING_UNSAID)
INPUTS = {
    "tokens": TensorSpec((LENGTH,), np.int32),
    "given": TensorSpec((), np.int32),
    "stop": TensorSpec((), np.int32),
    **NUMBERS.inputs,
}


def prompt(model, inputs):
    return Prompt(inputs["tokens"], inputs["given"], inputs["stop"])


def prefill(model, tokens, length, inputs):
    """It remembers all tokens but the last; what comes after a prompt is anything."""
    return jnp.where(jnp.arange(LENGTH)[None] < length[:, None] - 1, tokens, 100)


def following(model, token, index, cache, inputs):
    """What follows depends on the token before it, and on the sum of all before that."""
    rows = jnp.arange(len(token))
    cache = cache.at[rows, index - 1].set(token, mode="drop")
    known = jnp.arange(LENGTH)[None] < index[:, None]
    total = jnp.where(known, cache, 0).sum(1, dtype=jnp.int32)
    logits = model["table"][jnp.where(index > 0, token, 0), total % 5]
    return logits, cache


LOOP = TokenLoop(prompt, prefill, following, VOCAB)
TABLE = {"table": np.random.default_rng(0).normal(size=(VOCAB, 5, VOCAB)).astype(np.float32)}


@pytest.fixture(scope="module")
def executor():
    return Executor(TABLE, {
        "generate": Endpoint(LOOP, INPUTS),
        "ending": Endpoint(TokenLoop(prompt, prefill, following, VOCAB, end=END), INPUTS),
    }, batch_sizes=(1, ROWS))  # fmt: skip


def inputs_of(given, stop, **said):
    rows = len(given)
    tokens = np.random.default_rng(1).integers(0, END, (rows, LENGTH)).astype(np.int32)
    numbers = NUMBERS.rows(checked_fields("generate", NUMBERS.fields, said, rows), rows, {})
    return {"tokens": tokens, "given": np.int32(given), "stop": np.int32(stop), **numbers}


def drawn_by_hand(inputs, row):
    """The likeliest tokens, one after the other, and the log-probability of those that were drawn."""
    tokens, log_prob = list(inputs["tokens"][row][: inputs["given"][row]]), 0.0
    while len(tokens) < inputs["stop"][row]:
        logits = TABLE["table"][tokens[-1] if tokens else 0, sum(tokens) % 5].astype(np.float64)
        tokens.append(int(logits.argmax()))
        log_prob += logits.max() - np.log(np.exp(logits).sum())
    return tokens, log_prob


MIXED = inputs_of(
    [3, 0, 1, 5, 4],
    [12, 7, 9, 5, 12],
    temperature=np.array([1.0, 0.7, 1.0, 1.0, 3.0]),
    top_k=np.array([2, 7, 7, 7, 7]),
    top_p=np.array([1, 1, 0.8, 1, 1]),
)


KEYS = np.random.default_rng(3).integers(2**32, size=(ROWS, 2), dtype=np.uint32)


def keys(rows, first=0):
    """So many of the keys; slices of JAX would be compiled."""
    return jax.random.wrap_key_data(KEYS[first : first + rows])


def test_the_likeliest_tokens_are_those_by_hand(executor):
    inputs = inputs_of([3, 0, 1, 5, 4], [12, 7, 9, 5, 12], greedy=True)
    found = jax.device_get(executor("generate", inputs, keys=keys(ROWS)))
    np.testing.assert_array_equal(found["length"], inputs["stop"])
    for row in range(ROWS):
        wanted, _ = drawn_by_hand(inputs, row)
        np.testing.assert_array_equal(found["tokens"][row, : len(wanted)], wanted)
        assert not found["tokens"][row, len(wanted) :].any()


def test_the_state_tells_how_likely_its_tokens_are():
    inputs = inputs_of([3, 0, 1, 5, 4], [12, 7, 9, 5, 12], greedy=True)

    @jax.jit
    def end(model, keys, inputs):
        start = LOOP.init(model, keys, inputs)
        return stepping.advance(LOOP, model, keys, inputs, start, stepping.never_broken(ROWS), 99)[0].log_prob

    wanted = [drawn_by_hand(inputs, row)[1] for row in range(ROWS)]
    np.testing.assert_allclose(end(TABLE, keys(ROWS), inputs), wanted, rtol=1e-5)


def test_rows_are_the_same_alone_and_a_few_steps_at_a_time(executor):
    whole = jax.device_get(executor("generate", MIXED, keys=keys(ROWS)))
    for i in range(ROWS):
        row = {name: value[i : i + 1] for name, value in MIXED.items()}
        alone = np.asarray(executor("generate", row, keys=keys(1, first=i))["tokens"])
        np.testing.assert_array_equal(alone[0], whole["tokens"][i])
    looks = [
        jax.device_get(look.outputs) for look in executor.iterate("generate", MIXED, keys=keys(ROWS), every=4)
    ]
    np.testing.assert_array_equal(looks[-1]["tokens"], whole["tokens"])
    first = looks[0]["length"]
    np.testing.assert_array_equal(first, np.minimum(MIXED["stop"], MIXED["given"] + 4))
    for i in range(ROWS):  # a preview is what is drawn already
        np.testing.assert_array_equal(looks[0]["tokens"][i, : first[i]], whole["tokens"][i, : first[i]])


def test_a_symbol_ends_a_row(executor):
    inputs = inputs_of([1] * ROWS, [LENGTH] * ROWS)
    names = ("generate", "ending")
    going, ending = (jax.device_get(executor(name, inputs, keys=keys(ROWS))) for name in names)
    ends = [np.flatnonzero(row[1:] == END) for row in going["tokens"]]
    wanted = [2 + end[0] if len(end) else LENGTH for end in ends]
    assert min(wanted) < LENGTH
    np.testing.assert_array_equal(ending["length"], wanted)
    for row, length in enumerate(wanted):
        np.testing.assert_array_equal(ending["tokens"][row, :length], going["tokens"][row, :length])
        assert (ending["tokens"][row, length:] == END).all()


def test_a_row_that_ended_frees_its_place(executor):
    inputs = inputs_of([1] * ROWS, [LENGTH] * ROWS)
    with Batcher(Executor(TABLE, dict(executor.endpoints), batch_sizes=(2,))) as batcher:
        parts = [{name: value[i : i + 1] for name, value in inputs.items()} for i in range(ROWS)]
        futures = [batcher.submit("ending", part, seed=i) for i, part in enumerate(parts)]
        found = [future.result(TIMEOUT) for future in futures]
        stats = batcher.stats()["ending"]
    lengths = np.array([one["length"][0] for one in found])
    assert lengths.min() < LENGTH
    assert stats.row_steps == (lengths - 1).sum()
    for i, one in enumerate(found):
        wanted = executor.run(executor.check("ending", parts[i], seed=i))["tokens"][:1]
        np.testing.assert_array_equal(one["tokens"], wanted)


def test_what_is_written_again_changes_nothing():
    """Rows that rest while others take steps go on as if they had not waited."""

    @jax.jit
    def advanced(model, keys, inputs, state, most, is_held):
        broken = stepping.never_broken(ROWS)
        return stepping.advance(LOOP, model, keys, inputs, state, broken, most, is_held)[0]

    start = jax.jit(LOOP.init)(TABLE, keys(ROWS), MIXED)
    assert isinstance(start.written, Rewritable)
    free, held = np.zeros(ROWS, bool), np.array([True, False, True, False, False])
    apart = advanced(TABLE, keys(ROWS), MIXED, start, 2, free)
    apart = advanced(TABLE, keys(ROWS), MIXED, apart, 3, held)
    apart = advanced(TABLE, keys(ROWS), MIXED, apart, 99, free)
    at_once = advanced(TABLE, keys(ROWS), MIXED, start, 99, free)
    np.testing.assert_array_equal(apart.tokens, at_once.tokens)
    np.testing.assert_array_equal(apart.log_prob, at_once.log_prob)


def test_logits_that_are_not_finite_show():
    table = TABLE["table"].copy()
    table[2] = np.nan
    executor = Executor({"table": table}, {"generate": Endpoint(LOOP, INPUTS)}, batch_sizes=(2,))
    inputs = inputs_of([1, 1], [2, 2], greedy=True)
    inputs["tokens"][:, 0] = 0, 2
    with pytest.raises(NonFiniteError, match="row 1 came out NaN or infinite at step 1"):
        executor("generate", inputs, keys=keys(2))


def test_numbers_compile_nothing(executor, compilations):
    executor("generate", MIXED, keys=keys(ROWS))
    compilations.clear()
    for said in ({"greedy": True}, {"top_p": 0.5}, {"temperature": 0.0, "min_p": 0.3}):
        executor("generate", inputs_of([1, 2, 0, 3, 4], [8, 9, 10, 11, 12], **said), keys=keys(ROWS))
    assert compilations == []


SAYS = Continuing(context=40, num_tokens=20)


def test_room_for_new_tokens():
    said = checked_fields("generate", SAYS.fields, {"prompt_length": [3, 30], "num_tokens": [37, 2]}, 2)
    options = SAYS.options(said)
    found = SAYS.rows(said, 2, options)
    assert options == {"max_new_tokens": 64}
    np.testing.assert_array_equal(found["prompt_length"], [3, 30])
    np.testing.assert_array_equal(found["room"].sum(1), [37, 2])
    said = checked_fields("generate", SAYS.fields, {"prompt_length": [3, 30]}, 2)  # the usual, or what fits
    np.testing.assert_array_equal(SAYS.rows(said, 2, SAYS.options(said))["room"].sum(1), [20, 10])


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, "prompt_length: expected how many of the tokens are given, got nothing"),
        ({"prompt_length": 40}, "prompt_length: expected from 1 to 39, got 40"),
        ({"prompt_length": 0}, "prompt_length: expected from 1 to 39, got 0"),
        ({"prompt_length": 3, "num_tokens": 0}, "num_tokens: expected from 1 to 39, got 0"),
        (
            {"prompt_length": [3, 9], "num_tokens": [4, 32]},
            "num_tokens: expected at most 40 tokens together with the prompt, got 41",
        ),
    ],
)
def test_more_tokens_than_the_model_sees(said, message):
    with pytest.raises(InputError, match=message):
        SAYS.options(checked_fields("generate", SAYS.fields, said, 2))


def test_the_part_of_a_picture_that_is_kept():
    says = Completing(height=28, patch_size=4, num_labels=10)
    assert says.fields["known"].default == 12
    for known in (0, 28, [4, 8]):
        said = checked_fields("complete", says.fields, {"known": known}, 2)
        assert says.options(said) == {}
        np.testing.assert_array_equal(says.rows(said, 2, {})["known"], np.broadcast_to(known, 2))
    with pytest.raises(InputError, match="known: expected a multiple of 4, the height of a patch"):
        says.options(checked_fields("complete", says.fields, {"known": [4, 6]}, 2))
