import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from artifex.generative_models.core import DeviceManager
from artifex.generative_models.core.devices import DeviceMemory
from artifex.generative_models.core.errors import InputError

pytestmark = pytest.mark.eight_devices


def test_devices() -> None:
    assert DeviceManager().devices == jax.devices()
    assert len(DeviceManager().devices) == 8
    assert DeviceManager().default_device == jax.devices()[0]
    with jax.default_device(jax.devices()[1]):
        assert DeviceManager().default_device == jax.devices()[1]


@pytest.mark.parametrize(("num_devices", "size"), [(None, 8), (1, 1), (2, 2)])
def test_mesh(num_devices: int | None, size: int) -> None:
    mesh = DeviceManager().mesh(num_devices)
    assert dict(mesh.shape) == {"data": size}
    assert list(mesh.devices) == jax.devices()[:size]


def test_a_mesh_with_copies_of_the_weights_that_are_cut() -> None:
    mesh = DeviceManager().mesh(6, model_devices=2)
    assert dict(mesh.shape) == {"data": 3, "model": 2}
    assert list(mesh.devices.flat) == jax.devices()[:6]


@pytest.mark.parametrize(("num_devices", "model_devices"), [(None, 3), (6, 4), (2, 0), (2, -1), (2, 4)])
def test_copies_that_do_not_divide_the_devices(num_devices: int | None, model_devices: int) -> None:
    with pytest.raises(InputError, match=rf"model_devices: expected a divisor of .*; got {model_devices}"):
        DeviceManager().mesh(num_devices, model_devices=model_devices)


@pytest.mark.parametrize("num_devices", [-1, 0, 9])
def test_mesh_of_devices_that_are_not_there(num_devices: int) -> None:
    with pytest.raises(InputError, match=rf"num_devices: expected 1 to 8, .*; got {num_devices}"):
        DeviceManager().mesh(num_devices)


def test_the_cpu_reports_no_memory() -> None:
    assert DeviceManager().memory() == [DeviceMemory(device, None, None, None) for device in jax.devices()]


def test_cleanup_frees_what_only_cycles_hold_and_nothing_else() -> None:
    traces = 0

    @jax.jit
    def double(x: jax.Array) -> jax.Array:
        nonlocal traces
        traces += 1
        return x + x

    kept = jnp.arange(64)
    expected = np.asarray(double(kept))
    gc.collect()
    gc.disable()  # else a collection of its own might come first
    try:
        cycle: list[object] = [jnp.zeros((128, 128), jnp.float32)]
        cycle.append(cycle)
        del cycle
        assert DeviceManager().cleanup() == 128 * 128 * 4
    finally:
        gc.enable()
    np.testing.assert_array_equal(double(kept), expected)
    assert traces == 1
    assert DeviceManager().cleanup() == 0
