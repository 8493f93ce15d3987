"""Samplers with the exact denoiser of Gaussian data, where what must come out is known."""

import jax
import numpy as np
import pytest
from gaussian import FLOW, denoiser, diffusion
from scipy import stats

from artifex.generative_models.core import Endpoint, TensorSpec
from artifex.generative_models.core.sampling.linear import LinearSampler
from artifex.generative_models.core.sampling.packing import TABLE_INPUTS, TABLE_OPTIONS
from artifex.generative_models.core.sampling.samplers import table_for
from artifex.generative_models.core.sampling.table import NUM_COLUMNS, STEP
from artifex.generative_models.inference import Executor

ROWS = 2048
MEAN = np.array([0.7, -0.4], np.float32)
COVARIANCE = np.array([[0.25, 0.12], [0.12, 0.16]], np.float32)
DIFFUSION = diffusion()
CONFIGS = {"diffusion": DIFFUSION, "flow": FLOW}
LENGTHS = {"diffusion": 256, "flow": 64, "from_start": 1024}  # of all tables, so that each is one program


@pytest.fixture(scope="module")
def executor():
    networks = {name: denoiser(config, MEAN, COVARIANCE) for name, config in CONFIGS.items()}
    endpoints = {
        name: Endpoint(LinearSampler(network, (2,)), dict(TABLE_INPUTS), dict(TABLE_OPTIONS))
        for name, network in networks.items()
    }
    from_start = {**TABLE_INPUTS, "start": TensorSpec((2,), np.float32)}
    sampler = LinearSampler(networks["diffusion"], (2,), start="start")
    endpoints["from_start"] = Endpoint(sampler, from_start, dict(TABLE_OPTIONS))
    return Executor(None, endpoints, batch_sizes=(256, ROWS))


def drawn(executor, endpoint, config, steps, sampler, rows=ROWS, **given):
    table = table_for(config, steps, sampler)
    length = LENGTHS[endpoint]
    padded = np.zeros((length, NUM_COLUMNS), np.float32)
    padded[: len(table)] = table.rows
    inputs = {
        "table": np.broadcast_to(padded, (rows, *padded.shape)),
        "num_steps": np.full(rows, len(table), np.int32),
        "noise_scale": np.full(rows, table.scale, np.float32),
        **given,
    }
    return np.asarray(executor(endpoint, inputs, key=jax.random.key(0), max_steps=length)["x"])


@pytest.mark.parametrize(
    ("sampler", "steps", "tolerance"),
    [("ddpm", 250, 0.02), ("ddim", 200, 0.02), ("euler", 100, 0.03), ("euler_a", 200, 0.03), ("heun", 60,
    0.02),
     ("dpm++2m", 40, 0.02), ("dpm++2m_sde", 100, 0.02), ("unipc", 40, 0.02)],
)  # fmt: skip
def test_a_gaussian_comes_back(executor, sampler, steps, tolerance):
    config = DIFFUSION if sampler in ("ddpm", "ddim") else DIFFUSION | {"use_karras_sigmas": True}
    x = drawn(executor, "diffusion", config, steps, sampler)
    error = 3 / np.sqrt(ROWS)
    np.testing.assert_allclose(x.mean(axis=0), MEAN, atol=tolerance + error * 0.5)
    np.testing.assert_allclose(np.cov(x.T), COVARIANCE, atol=tolerance + error * 0.35)
    for axis in range(2):
        z = (x[:, axis] - MEAN[axis]) / np.sqrt(COVARIANCE[axis, axis])
        assert stats.kstest(z, "norm").statistic < 1.63 / np.sqrt(ROWS) + tolerance  # 1 % level


def test_flow_matching_carries_one_gaussian_to_another(executor):
    x = drawn(executor, "flow", FLOW, 60, "flow_euler")
    np.testing.assert_allclose(x.mean(axis=0), MEAN, atol=0.04)
    np.testing.assert_allclose(np.cov(x.T), COVARIANCE, atol=0.04)


@pytest.mark.parametrize(
    ("sampler", "order"), [("ddim", 1), ("euler", 1), ("heun", 2), ("dpm++2m", 2), ("unipc", 2)]
)
def test_deterministic_samplers_converge_at_their_order(executor, sampler, order):
    """From the same noise, beside very many steps."""
    config = DIFFUSION | {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}
    start = np.random.default_rng(0).normal(size=(256, 2)).astype(np.float32)

    def ended(steps):
        return drawn(executor, "from_start", config, steps, sampler, 256, start=start)

    exact = ended(499)
    errors = [np.abs(ended(steps) - exact).mean() for steps in (20, 40)]
    assert np.log2(errors[0] / errors[1]) > order - 0.1


def test_ddpm_has_the_weights_of_the_posterior():
    """Ho et al. 2020, equation 7, at t = 500 of 1000 steps."""
    betas = np.linspace(1e-4, 0.02, 1000)
    left = np.cumprod(1 - betas)
    (row,) = (row for row in table_for(DIFFUSION, 1000, "ddpm").rows if row[0] == 500)
    of_sample = np.sqrt(left[499]) * betas[500] / (1 - left[500])
    of_x = np.sqrt(1 - betas[500]) * (1 - left[499]) / (1 - left[500])
    std = np.sqrt((1 - left[499]) / (1 - left[500]) * betas[500])
    np.testing.assert_allclose(row[STEP][[2, 0, 6]], [of_sample, of_x, std], rtol=1e-12)
