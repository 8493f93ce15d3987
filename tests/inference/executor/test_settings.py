import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from artifex.generative_models.core import Endpoint, TensorSpec
from artifex.generative_models.inference import Executor, cache
from artifex.generative_models.inference.executor.settings import (
    Setting,
    Tuned,
    load_tuned,
    save_tuned,
    tuning_name,
)

TUNED = Tuned(48, 2, {1: Setting(), 48: Setting(fusion=True)})
ROW = TensorSpec((3,), jnp.float32)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ARTIFEX_CACHE_DIR", str(tmp_path / "cache"))


def double(model, keys, inputs):
    return {"y": 2 * inputs["x"]}


def triple(model, keys, inputs, *, power=1):
    return {"y": 3 * inputs["x"] ** power}


WEIGHTS = (np.ones((2, 3), np.float32),)


def name(endpoint=None, weights=WEIGHTS, dtype=None, devices=None, cores=2):
    endpoint = endpoint or Endpoint(double, {"x": ROW})
    return tuning_name(endpoint, weights, dtype=dtype, devices=devices or jax.devices()[:1], cores=cores)


def test_a_result_is_read_as_it_was_saved():
    save_tuned(name(), TUNED)
    assert load_tuned(name()) == TUNED


def test_there_is_none_before_one_is_saved():
    assert load_tuned(name()) is None


def test_weights_of_other_values_share_a_result():
    assert name(weights=[np.zeros((2, 3), np.float32)]) == name()


@pytest.mark.parametrize(
    "other",
    [
        {"endpoint": Endpoint(triple, {"x": ROW})},
        {"endpoint": Endpoint(double, {"x": TensorSpec((4,), jnp.float32)})},
        {"endpoint": Endpoint(double, {"x": ROW}, {"power": 2})},
        {"weights": [np.ones((3, 2), np.float32)]},
        {"weights": [np.ones((2, 3), np.float16)]},
        {"dtype": jnp.bfloat16},
        {"devices": jax.devices()[:2]},
        {"cores": 4},
    ],
    ids=lambda other: next(iter(other)),
)
def test_whatever_decides_the_speed_has_a_result_of_its_own(other):
    assert name(**other) != name()


def test_another_jaxlib_has_a_result_of_its_own(monkeypatch):
    before = name()
    monkeypatch.setattr(
        "artifex.generative_models.inference.executor.settings.version", lambda package: "999.0"
    )
    assert name() != before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\x00",
        b"[]",
        b"{}",
        b'{"batch_size": 4}',
        *(
            json.dumps({"batch_size": 4, "executions_in_flight": 2, "settings": {}, **wrong}).encode()
            for wrong in (
                {"batch_size": 0},
                {"batch_size": 4.0},
                {"batch_size": True},
                {"executions_in_flight": "2"},
                {"settings": []},
                {"settings": {"x": {}}},
                {"settings": {"0": {}}},
                {"settings": {"4": {"fusion": "yes"}}},
                {"settings": {"4": {"unknown": 1}}},
                {"settings": {"4": {"convolutions": [[[8, 8, 4, 4, False], 3]]}}},
                {"settings": {"4": {"convolutions": [[[8, 8, 4, 4, True], 4]]}}},
                {"settings": {"4": {"convolutions": [[[8, 8, 4], 2]]}}},
                {"settings": {"4": {"convolutions": 2}}},
            )
        ),
    ],
)
def test_a_damaged_result_is_ignored_with_a_warning(content, caplog):
    cache.write(name(), content)
    assert load_tuned(name()) is None
    assert "damaged" in caplog.text


def test_a_cache_that_others_may_write_to_is_not_used(caplog, tmp_path):
    save_tuned(name(), TUNED)
    (tmp_path / "cache").chmod(0o777)
    assert load_tuned(name()) is None
    assert "going on without" in caplog.text


@pytest.fixture
def endpoint():
    endpoint = Endpoint(double, {"x": ROW})
    executor = Executor(None, {"double": endpoint})
    save_tuned(executor.tuning_name("double"), TUNED)
    return endpoint


def test_an_executor_uses_what_was_found(endpoint):
    executor = Executor(None, {"double": endpoint, "triple": Endpoint(triple, {"x": ROW})})
    assert executor.tuned == {"double": TUNED}
    assert executor.batch_sizes == (1, 2, 4, 8, 16, 32, 48, 64)
    compiled = executor.warmup()
    assert list(compiled["double"]) == [1, 2, 4, 8, 16, 32, 48]
    assert list(compiled["triple"]) == [1, 2, 4, 8, 16, 32, 64]
    x = np.arange(300, dtype=np.float32).reshape(100, 3)
    np.testing.assert_array_equal(executor("double", {"x": x})["y"], 2 * x)
    assert executor.compile_count == 14


def test_an_executor_does_without_if_told_so(endpoint):
    executor = Executor(None, {"double": endpoint}, tuned=False)
    assert executor.tuned == {}
    assert executor.batch_sizes[-1] == 64


def test_batch_sizes_that_are_asked_for_stay(endpoint):
    assert Executor(None, {"double": endpoint}, batch_sizes=(2, 64)).batch_sizes == (2, 64)


def test_results_can_be_given(endpoint):
    given = {"double": Tuned(10, 1, {})}
    assert Executor(None, {"double": endpoint}, tuned=given).batch_sizes == (1, 2, 4, 8, 10)


@pytest.mark.parametrize("endpoint_name", ["encode", "decode", "reconstruct", "generate"])
def test_fusion_changes_no_result(endpoint_name, mnist_vae, pictures):
    plain = Executor(mnist_vae, batch_sizes=(8,), tuned=False)
    setting = {8: Setting(fusion=True)}
    inputs = {
        "encode": {"x": pictures[:8]},
        "decode": {"z": np.linspace(-1, 1, 8 * 32, dtype=np.float32).reshape(8, 32)},
        "reconstruct": {"x": pictures[:8]},
        "generate": {"temperature": np.linspace(0, 1, 8, dtype=np.float32)},
    }[endpoint_name]
    fused = Executor(mnist_vae, batch_sizes=(8,), tuned={endpoint_name: Tuned(8, 1, setting)})
    outputs = [
        executor(endpoint_name, inputs, **({"key": jax.random.key(3)} if endpoint_name == "generate" else {}))
        for executor in (plain, fused)
    ]
    assert outputs[0].keys() == outputs[1].keys()
    for value, other in zip(outputs[0].values(), outputs[1].values(), strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-4, atol=1e-5)  # sums in another order
