"""Log-densities beside those of Gaussian data."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import FLOW, denoiser, diffusion
from said import call
from scipy import stats

from artifex.generative_models.core.denoisers import denoiser_endpoints
from artifex.generative_models.core.errors import InputError, NonFiniteError
from artifex.generative_models.core.sampling.denoising import Denoising
from artifex.generative_models.core.sampling.likelihood import path_of
from artifex.generative_models.inference import Executor

SHAPE = (1, 3, 1)
MEAN = np.array([0.7, -0.4, 0.1])
# So wide that the least noise of training, a deviation of 0.01, changes log-densities by less than 1e-3.
COVARIANCE = np.array([[1.0, 0.5, 0], [0.5, 0.7, 0], [0, 0, 1.2]])
# Whose noise hides everything in the end, so that the density of that is exact.
HIDING = {"beta_end": 0.04}
CONFIGS = {
    "epsilon": diffusion(**HIDING),
    "v": diffusion("v_prediction", **HIDING),
    "sample": diffusion("sample", **HIDING),
    "zero snr": diffusion("v_prediction", rescale_betas_zero_snr=True),
    "flow": FLOW,
}
ROWS = 8


def executor_of(config, fn=None):
    fn = fn or denoiser(config, MEAN, COVARIANCE)
    return Executor(None, denoiser_endpoints(fn, SHAPE, Denoising(json.dumps(config))), batch_sizes=(ROWS,))


@pytest.fixture(scope="module")
def of_flow():
    return executor_of(FLOW)


@pytest.fixture(scope="module")
def samples():
    drawn = np.random.default_rng(0).multivariate_normal(MEAN, COVARIANCE, ROWS)
    return drawn.astype(np.float32).reshape(-1, *SHAPE)


@pytest.fixture(scope="module")
def exact(samples):
    return stats.multivariate_normal(MEAN, COVARIANCE).logpdf(samples.reshape(ROWS, 3))


@pytest.mark.parametrize("kind", ["epsilon", "zero snr", "flow"])
def test_a_gaussian_has_its_log_density(kind, samples, exact, of_flow):
    executor = of_flow if kind == "flow" else executor_of(CONFIGS[kind])
    found = call(executor, "log_prob", {"x": samples})
    np.testing.assert_allclose(found["log_prob"], exact, atol=1e-3)
    np.testing.assert_allclose(found["bits_per_dim"], -exact / 3 / np.log(2), atol=1e-3)
    assert not executor.draws("log_prob")


def test_what_a_network_predicts_is_told_as_the_same_velocity(samples):
    paths = [path_of(CONFIGS[kind]) for kind in ("epsilon", "v", "sample")]
    networks = [denoiser(CONFIGS[kind], MEAN, COVARIANCE) for kind in ("epsilon", "v", "sample")]

    @jax.jit
    def velocities(u, x):
        times = [path.time(u) for path in paths]
        predictions = [
            network(None, x, jnp.broadcast_to(time, len(x)), None, {})
            for network, time in zip(networks, times, strict=True)
        ]
        return [path.velocity(u, x, o) for path, o in zip(paths, predictions, strict=True)]

    for part in (0.1, 0.5, 0.9):
        u = np.float32((1 - part) * paths[0].start + part * paths[0].stop)
        wanted, *others = velocities(u, samples)
        for found in others:
            np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


def test_bits_of_cells(samples, of_flow):
    executor = of_flow
    x, key = np.round(255 * np.clip(samples, -1, 1) / 2) * np.float32(2 / 255), jax.random.key(1)
    found = call(executor, "log_prob", {"x": x}, key=key, dequantize=True)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, i), 1))(np.arange(len(x)))
    noise = jax.vmap(lambda key: jax.random.uniform(key, SHAPE))(keys)
    filled = call(
        executor, "log_prob", {"x": x + (np.asarray(noise) - np.float32(0.5)) * np.float32(2 / 255)}
    )
    np.testing.assert_allclose(found["log_prob"], filled["log_prob"], atol=1e-3)
    np.testing.assert_allclose(
        found["bits_per_dim"], filled["bits_per_dim"] + np.log2(255 / 2), rtol=1e-4, atol=1e-3
    )


def test_a_row_takes_steps_of_its_own(samples, of_flow):
    executor = of_flow
    given = np.concatenate([samples[:4], 100 * samples[4:]])
    whole = call(executor, "log_prob", {"x": given})["log_prob"]
    np.testing.assert_array_equal(
        call(executor, "log_prob", {"x": given[::-1].copy()})["log_prob"], whole[::-1]
    )
    for i in (1, 6):
        alone = call(executor, "log_prob", {"x": given[i : i + 1]})["log_prob"]
        np.testing.assert_allclose(alone, whole[i : i + 1], rtol=1e-4)  # steps follow what is rounded


def test_an_estimate_comes_close_to_it(samples, exact):
    executor = executor_of(CONFIGS["v"])
    key = jax.random.key(0)
    few, many = (
        call(executor, "log_prob", {"x": samples}, key=key, divergence="estimate", probes=probes)["log_prob"]
        for probes in (1, 64)
    )
    assert 0.01 < np.abs(few - exact).mean() < 2
    assert np.abs(many - exact).mean() < 0.2
    again = call(executor, "log_prob", {"x": samples}, key=key, divergence="estimate", probes=1)["log_prob"]
    np.testing.assert_array_equal(again, few)


def test_larger_samples_are_estimated_unless_said(samples):
    for side, wanted in ((16, "exact"), (17, "estimate")):
        endpoints = denoiser_endpoints(lambda *_: None, (side, side, 1), Denoising(json.dumps(FLOW)))
        assert endpoints["log_prob"].defaults["divergence"] == wanted


def test_a_row_that_is_not_brought_to_the_end_is_told(samples):
    executor = executor_of(FLOW, lambda model, x, time, guidance, inputs: 1e6 * x * x)
    with pytest.raises(NonFiniteError, match="log_prob"):
        call(executor, "log_prob", {"x": samples})


def test_without_its_solver_it_says_what_to_install(samples, monkeypatch):
    executor = executor_of(FLOW)
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(InputError, match=r"pip install 'artifex\[ode\]'"):
        call(executor, "log_prob", {"x": samples})
    monkeypatch.setattr("artifex.generative_models.core.denoisers.find_spec", lambda name: None)
    assert "log_prob" not in executor_of(FLOW).endpoints
    assert call(executor, "invert", {"x": samples})["noise"].shape == samples.shape
