import itertools
import json
import math
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from shared import TIMEOUT, randomised

from artifex.generative_models.core.config import abstract_model
from artifex.generative_models.core.errors import ConfigError, InputError, NonFiniteError
from artifex.generative_models.inference import Batcher, Executor, InferencePipeline, load_exported_model
from artifex.generative_models.inference.pipeline import load_pipeline
from artifex.generative_models.models.autoregressive import Autoregressive

ARGUMENTS = {
    "input_shape": (4, 6, 1),
    "levels": 3,
    "patch_size": 2,
    "features": 8,
    "num_layers": 2,
    "num_heads": 2,
    "num_labels": 3,
}
TOKENS, VOCAB = 6, 81
ROWS = 4


@pytest.fixture(scope="module")
def model() -> Autoregressive:
    return randomised(lambda: Autoregressive(**ARGUMENTS, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def executor(model: Autoregressive) -> Executor:
    return Executor(model, batch_sizes=(ROWS,))


@pytest.fixture(scope="module")
def pipeline(executor: Executor) -> InferencePipeline:
    return InferencePipeline(executor, batch_size=ROWS)


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3, (ROWS, 4, 6, 1)).astype(np.float32) / 2


LABEL = np.arange(ROWS, dtype=np.int32) % 3

whole = jax.jit(lambda model, tokens: model.network(tokens, LABEL))


def whole_logits(model: Autoregressive, tokens: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The logits of all tokens, in float64 and with loops."""
    net = model.network

    def parts(*variables):
        return [np.asarray(variable[...], np.float64) for variable in variables]

    def norm(x, layer):
        scale, bias = parts(layer.scale, layer.bias)
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(
            x.var(-1, keepdims=True) + layer.epsilon
        ) * scale + bias

    def linear(x, layer):
        kernel, bias = parts(layer.kernel, layer.bias)
        return x @ kernel + bias

    symbols, positions, starts, head = parts(
        net.symbols.embedding, net.positions.embedding, net.starts.embedding, net.head.kernel
    )
    found = []
    for row, start in zip(tokens, label, strict=True):
        x = np.stack([starts[start], *symbols[row[:-1]]]) + positions[: len(row)]
        for block in net.blocks:
            q, k, v = np.split(linear(norm(x, block.norm_1), block.attention.to_qkv), 3, -1)
            d = q.shape[1] // block.attention.heads
            seen = np.zeros_like(q)
            for i, head_ in itertools.product(range(len(row)), range(block.attention.heads)):
                part = slice(head_ * d, (head_ + 1) * d)
                scores = k[: i + 1, part] @ q[i, part] / math.sqrt(d)
                weights = np.exp(scores - scores.max())
                seen[i, part] = weights / weights.sum() @ v[: i + 1, part]
            x = x + linear(seen, block.attention.to_out)
            h = linear(norm(x, block.norm_2), block.feed_forward.proj_in)
            h = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
            x = x + linear(h, block.feed_forward.proj_out)
        found.append(norm(x, net.norm) @ head)
    return np.stack(found)


def test_whole_sequences_and_single_tokens_give_what_the_layers_say(model: Autoregressive) -> None:
    tokens = np.random.default_rng(1).integers(0, VOCAB, (ROWS, TOKENS)).astype(np.int32)
    wanted = whole_logits(model, tokens, LABEL)
    found = np.asarray(whole(model, tokens))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)

    @jax.jit
    def step(model, token, index, cache):
        return model.network.step(token, index, cache, LABEL)

    cache = jax.jit(lambda model: model.network.empty_cache(ROWS, TOKENS))(model)
    for i in range(TOKENS):
        token = tokens[:, max(i - 1, 0)]
        for _ in range(2):  # what is written again is the same
            logits, cache = step(model, token, np.full(ROWS, i, np.int32), cache)
        np.testing.assert_allclose(logits, found[:, i], rtol=1e-4, atol=1e-5)


def test_rows_at_places_of_their_own(model: Autoregressive) -> None:
    """Prompts are read at once, and rows go on from different places."""
    tokens = np.random.default_rng(2).integers(0, VOCAB, (ROWS, TOKENS)).astype(np.int32)
    wanted = np.asarray(whole(model, tokens))
    length = np.array([1, 4, 2, 3], np.int32)

    @jax.jit
    def after(model):
        cache = model.network.prefill(jnp.asarray(tokens[:, :-1]), TOKENS, jnp.asarray(LABEL))
        last = tokens[np.arange(ROWS), length - 1]
        return model.network.step(jnp.asarray(last), jnp.asarray(length), cache, jnp.asarray(LABEL))[0]

    np.testing.assert_allclose(after(model), wanted[np.arange(ROWS), length], rtol=1e-4, atol=1e-5)


def test_greedy_tokens_are_those_of_whole_sequences(model: Autoregressive, pipeline) -> None:
    drawn = pipeline.call("generate", num_rows=ROWS, label=LABEL, greedy=True)["x"]
    tokens = np.zeros((ROWS, TOKENS), np.int32)
    for i in range(TOKENS):
        tokens[:, i] = np.asarray(whole(model, tokens))[:, i].argmax(1)
    np.testing.assert_array_equal(drawn, jax.jit(type(model).pictures)(model, tokens))
    assert len(np.unique(tokens)) > 2


def test_patches_are_symbols_and_back(model: Autoregressive, x: np.ndarray) -> None:
    tokens = np.asarray(model.tokens(jnp.asarray(x)))
    np.testing.assert_array_equal(model.pictures(jnp.asarray(tokens)), x)
    patch = (2 * x[1, 2:4, 4:6, 0]).astype(int)  # the last but none: at the bottom on the right
    assert tokens[1, 5] == patch[0, 0] * 27 + patch[0, 1] * 9 + patch[1, 0] * 3 + patch[1, 1]
    near = np.clip(x + np.random.default_rng(3).uniform(-0.24, 0.24, x.shape), 0, 1)
    np.testing.assert_array_equal(model.tokens(jnp.asarray(near, jnp.float32)), tokens)


def test_probabilities_of_all_pictures_sum_to_one() -> None:
    tiny = {**ARGUMENTS, "input_shape": (2, 3, 1), "levels": 2, "patch_size": 1, "num_labels": 2}
    executor = Executor(randomised(lambda: Autoregressive(**tiny, rngs=nnx.Rngs(0))), batch_sizes=(64,))
    every = np.array(list(itertools.product([0, 1], repeat=6)), np.float32).reshape(64, 2, 3, 1)
    for label in (0, 1):
        found = executor("log_prob", {"x": every, "label": np.full(64, label, np.int32)})
        assert np.exp(np.asarray(found["log_prob"], np.float64)).sum() == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(found["bits_per_dim"], -found["log_prob"] / (6 * math.log(2)), rtol=1e-6)


def test_how_often_pictures_are_drawn() -> None:
    """As often as `log_prob` says."""
    tiny = {**ARGUMENTS, "input_shape": (1, 3, 1), "levels": 2, "patch_size": 1, "num_labels": 0}
    pipeline = InferencePipeline(
        randomised(lambda: Autoregressive(**tiny, rngs=nnx.Rngs(0))), batch_size=1024
    )
    drawn = pipeline.call("generate", num_rows=4096, rngs=0)["x"].reshape(-1, 3) @ [4, 2, 1]
    every = np.array(list(itertools.product([0, 1], repeat=3)), np.float32).reshape(8, 1, 3, 1)
    likely = np.exp(pipeline.call("log_prob", x=every)["log_prob"].astype(np.float64))
    counts = np.bincount(drawn.astype(int), minlength=8)
    assert (np.abs(counts - 4096 * likely) < 4.5 * np.sqrt(4096 * likely * (1 - likely))).all()
    assert likely.max() > 1.2 * likely.min()


def test_rows_are_the_same_alone_and_a_few_steps_at_a_time(executor: Executor, x: np.ndarray) -> None:
    keys = jax.random.split(jax.random.key(1), ROWS)
    numbers = {
        "label": LABEL.astype(np.int32),
        "known": np.array([0, 2, 4, 2], np.int32),
        "temperature": np.float32([1, 0.5, 1, 2]),
        "greedy": np.array([False, False, False, True]),
        "top_k": np.array([81, 5, 81, 81], np.int32),
        "top_p": np.float32([0.9, 1, 1, 1]),
        "min_p": np.float32([0, 0, 0.1, 0]),
        "repetition_penalty": np.float32([1, 1.2, 1, 1]),
    }
    inputs = {"x": x, **numbers}
    whole = np.asarray(executor("complete", inputs, keys=keys)["x"])
    for i in range(ROWS):
        row = {name: value[i : i + 1] for name, value in inputs.items()}
        np.testing.assert_array_equal(executor("complete", row, keys=keys[i : i + 1])["x"][0], whole[i])
        np.testing.assert_array_equal(whole[i, : numbers["known"][i]], x[i, : numbers["known"][i]])
    assert (whole[0] != x[0]).any()
    looks = list(executor.iterate("complete", inputs, keys=keys, every=2))
    np.testing.assert_array_equal(looks[-1].outputs["x"], whole)
    np.testing.assert_array_equal(looks[-1].steps, [6, 3, 0, 3])
    first = looks[0].outputs["x"]  # two patches more, and black after them
    np.testing.assert_array_equal(first[0, :2, :4], whole[0, :2, :4])
    assert not first[0, :2, 4:].any()
    assert not first[0, 2:].any()


def test_rows_join_and_leave_batches(pipeline: InferencePipeline, x: np.ndarray) -> None:
    known = [0, 2, 4, 2, 0]
    said = [{"seed": i, "known": rows, "label": i % 3} for i, rows in enumerate(known)]
    with Batcher(pipeline.executor) as batcher:
        futures = [batcher.submit("complete", {"x": x[:1]}, num_rows=1, **each) for each in said]
        found = [future.result(TIMEOUT)["x"] for future in futures]
    with Batcher(pipeline.executor, slots=False) as batcher:
        for i, each in enumerate(said):
            wanted = batcher.submit("complete", {"x": x[:1]}, num_rows=1, **each).result(TIMEOUT)["x"]
            np.testing.assert_array_equal(found[i], wanted)


@pytest.mark.parametrize(
    ("endpoint", "said", "message"),
    [
        ("generate", {"label": 3}, "label: expected from 0 to 2, got 3"),
        ("generate", {"label": -1}, "label: expected from 0 to 2, got -1"),
        ("generate", {"top_p": 0.0}, "top_p: expected above 0"),
        ("complete", {"known": 5}, "known: expected from 0 to 4, got 5"),
        ("complete", {"known": 1}, "known: expected a multiple of 2"),
        ("log_prob", {"label": 3}, "label: expected from 0 to 2, got 3"),
    ],
)
def test_what_is_refused(pipeline, x: np.ndarray, endpoint: str, said: dict, message: str) -> None:
    given = {"num_rows": 1} if endpoint == "generate" else {"x": x[:1]}
    with pytest.raises(InputError, match=message):
        pipeline.call(endpoint, **given, **said)


def test_a_cache_that_is_not_finite_shows(
    model: Autoregressive, executor: Executor, pipeline: InferencePipeline, x: np.ndarray
) -> None:
    graphdef, state = nnx.split(model)
    broken = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf, state))
    embedding = np.array(broken.network.symbols.embedding[...])
    embedding[int(np.asarray(model.tokens(jnp.asarray(x)))[1, 0])] = np.nan
    broken.network.symbols.embedding[...] = jax.device_put(embedding)
    executor.swap(broken)
    try:
        with pytest.raises(NonFiniteError, match="row 0 came out NaN or infinite at step 1"):
            pipeline.call("complete", x=x[1:2], known=2)
    finally:
        executor.swap(model)


def test_weights_in_few_bits_compute_in_as_many(model: Autoregressive) -> None:
    graphdef, state = nnx.split(model)
    bits = jax.tree.map(lambda leaf: np.asarray(leaf).astype(jnp.bfloat16), state)
    short = nnx.merge(graphdef, jax.device_put(bits))
    cache = jax.eval_shape(lambda: short.network.empty_cache(ROWS, TOKENS))
    token = np.zeros(ROWS, np.int32)
    logits, after = jax.eval_shape(short.network.step, token, token, cache, token)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype.name for leaf in jax.tree.leaves(after)} == {"bfloat16"}


def test_its_config_makes_it_anew(model: Autoregressive) -> None:
    again = abstract_model("autoregressive", json.loads(json.dumps(model.config)))
    shapes = [jax.tree.map(jnp.shape, nnx.state(each)) for each in (again, model)]
    assert shapes[0] == shapes[1]
    assert again.config == model.config


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"input_shape": [4, 6]}, "input_shape: expected 3 items, got 2"),
        ({"patch_size": 3}, "patch_size: expected a divisor of the height, which is 4, got 3"),
        ({"levels": 1}, "levels: expected an integer from 2"),
        ({"levels": 17}, r"levels: expected at most 65536 patches, got 17 \*\* 4"),
        ({"num_heads": 3}, "num_heads: expected a divisor of the features, which is 8, got 3"),
        ({"features": 0}, "features: expected an integer from 1"),
        ({"num_layers": 0}, "num_layers: expected an integer from 1"),
        ({"num_labels": -1}, "num_labels: expected an integer from 0"),
        ({"tied": 1}, "tied: expected true or false"),
        ({"epsilon": 0}, "epsilon: expected a number above 0"),
    ],
)
def test_a_config_that_makes_none(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        abstract_model("autoregressive", {**ARGUMENTS, **changed})


def test_the_bundled_one_draws_digits(digits: np.ndarray) -> None:
    """Most of them as they are asked for, and real ones are as likely as others of the test set were."""
    with np.load(str(resources.files("artifex") / "zoo" / "mnist_digits.npz")) as archive:
        labels = archive["labels"]
    names = ("mnist-autoregressive", "mnist-classifier")
    pipeline, classifier = (load_pipeline(name, batch_size=20) for name in names)
    wanted = np.arange(20) % 10
    drawn = pipeline.call("generate", num_rows=20, label=wanted, rngs=0)["x"]
    assert (classifier.call("classify", x=drawn)["label"] == wanted).sum() >= 14
    bits = pipeline.call("log_prob", x=digits[:100], label=labels[:100].astype(np.int32))["bits_per_dim"]
    metadata = load_exported_model("mnist-autoregressive")[2]
    error = bits.std() / np.sqrt(len(bits))
    assert abs(bits.mean() - metadata["test_bits_per_dim"]) < 4 * error
