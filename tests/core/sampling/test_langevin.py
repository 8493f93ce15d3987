"""Langevin chains of densities that are known: Gaussians, mixtures of them, and one with an edge."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from said import rows_of
from scipy import stats
from shared import TOLERANCE

from artifex.generative_models.core import Endpoint
from artifex.generative_models.core.errors import InputError, InputTypeError, NonFiniteError
from artifex.generative_models.core.fields import checked_fields
from artifex.generative_models.core.sampling.langevin import (
    LANGEVIN_INPUTS,
    METHODS,
    LangevinLoop,
    energy_and_gradient,
    noise_level,
)
from artifex.generative_models.core.sampling.walking import Walking
from artifex.generative_models.inference import Executor

ROWS = 2048
MEAN = np.array([0.7, -0.4], np.float32)
COVARIANCE = np.array([[0.6, 0.3], [0.3, 0.4]], np.float32)
WEIGHTS, MIDDLES, WIDTH = np.array([0.3, 0.7]), np.array([-1.0, 1.2]), 0.6  # of a mixture in one dimension
WALKING = Walking(sigma_min=0.05, sigma_max=20.0, sigma=1.0)


def gaussian(model, x, sigma, inputs):
    """A Gaussian, whatever the noise level: chains have it at the level 1, where the step is step_size."""
    away = x - MEAN[None]
    return 0.5 * jnp.sum(away * (away @ np.linalg.inv(COVARIANCE)), axis=1)


def noised_gaussian(model, x, sigma, inputs):
    """That Gaussian with noise."""
    variances, axes = (np.asarray(part, np.float32) for part in np.linalg.eigh(COVARIANCE))
    along = (x - MEAN[None]) @ axes
    return 0.5 * jnp.sum(along**2 / (variances[None] + sigma[:, None] ** 2), axis=1)


def mixture(model, x, sigma, inputs):
    parts = (
        -0.5 * ((x - np.float32(MIDDLES)[None]) / np.float32(WIDTH)) ** 2
        + np.log(WEIGHTS, dtype=np.float32)[None]
    )
    return -jax.nn.logsumexp(parts, axis=1)


def half_line(model, x, sigma, inputs):
    """The exponential distribution: nothing lies below 0."""
    return jnp.where(x[:, 0] >= 0, x[:, 0], jnp.inf)


def quartic(model, x, sigma, inputs):
    """Too steep for large steps."""
    return jnp.sum(x**4, axis=1)


LOOPS = {
    "gaussian": LangevinLoop(gaussian, (2,)),
    "noised": LangevinLoop(noised_gaussian, (2,), mean=0.5, std=0.5),
    "denoised": LangevinLoop(noised_gaussian, (2,), mean=0.5, std=0.5, denoises=True),
    "mixture": LangevinLoop(mixture, (1,)),
    "half_line": LangevinLoop(half_line, (1,), mean=6.0),
    "quartic": LangevinLoop(quartic, (3,)),
}


ENDPOINTS = {name: Endpoint(loop, LANGEVIN_INPUTS, says=WALKING) for name, loop in LOOPS.items()}


@pytest.fixture(scope="module")
def executor() -> Executor:
    return Executor(None, ENDPOINTS, batch_sizes=(ROWS,))


@pytest.fixture(scope="module")
def few() -> Executor:
    return Executor(None, ENDPOINTS, batch_sizes=(8,))


def walked(executor: Executor, name: str, num_rows: int = ROWS, seed: int = 1, **said: object) -> dict:
    inputs, _ = rows_of(executor, name, {"num_steps": np.empty(num_rows)}, **said)
    return {key: np.asarray(value) for key, value in
            executor(name, inputs, key=jax.random.key(seed)).items()}  # fmt: skip


def recursion(size: float, num_steps: int, variance: float, *, ula: bool) -> float:
    """The variance, in float64, of a chain of a Gaussian of some variance, from that of its start on."""
    start, end = (WALKING.sigma_max, WALKING.sigma_min) if not ula else (1.0, 1.0)
    levels = start * (end / start) ** (np.arange(num_steps + 1) / num_steps)
    found = start**2 + 0.25
    for now, following in pairwise(levels):
        kept = 1 - size * now**2 / (2 * (variance + now**2))
        missing = max(0.0, following**2 - ((1 - size / 2) * now) ** 2)
        found = kept**2 * found + (size * now**2 if ula else missing)
    return found


def assert_gaussian(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> None:
    """The moments within four standard errors, and the law of each axis; seeds are fixed."""
    spread = np.sqrt(np.diag(covariance))
    np.testing.assert_array_less(np.abs(x.mean(0) - mean), 4 * spread / np.sqrt(len(x)))
    errors = np.sqrt((np.outer(spread**2, spread**2) + covariance**2) / len(x))
    np.testing.assert_array_less(np.abs(np.cov(x.T) - covariance), 4 * errors)
    for axis in range(x.shape[1]):
        assert stats.kstest((x[:, axis] - mean[axis]) / spread[axis], "norm").pvalue > 0.01


@pytest.mark.parametrize(("method", "step_size"), [("mala", 0.5), ("ula", 0.03)])
def test_a_gaussian_comes_back(executor: Executor, method: str, step_size: float) -> None:
    num_steps = {"mala": 60, "ula": 250}[method]
    found = walked(executor, "gaussian", method=method, step_size=step_size, num_steps=num_steps)
    assert_gaussian(found["x"], MEAN, COVARIANCE)


def test_large_unadjusted_steps_spread_it_as_they_should(executor: Executor) -> None:
    """Of a Gaussian of precision P they come to the covariance of precision P (1 - size / 4 P)."""
    precision = np.linalg.inv(COVARIANCE.astype(np.float64))
    expected = np.linalg.inv(precision @ (np.eye(2) - 0.6 / 4 * precision))
    x = walked(executor, "gaussian", method="ula", step_size=0.6, num_steps=60)["x"]
    assert_gaussian(x, MEAN, expected)
    assert expected[0, 0] > 1.07 * COVARIANCE[0, 0]  # which the tolerance tells apart
    assert stats.kstest((x[:, 0] - MEAN[0]) / np.sqrt(COVARIANCE[0, 0]), "norm").pvalue < 0.01


@pytest.mark.parametrize(("method", "step_size", "num_steps"), [("mala", 0.6, 150), ("ula", 0.06, 350)])
def test_a_mixture_comes_back(executor: Executor, method: str, step_size: float, num_steps: int) -> None:
    found = walked(executor, "mixture", method=method, step_size=step_size, num_steps=num_steps)
    x = found["x"][:, 0]

    def law(x: np.ndarray) -> np.ndarray:
        return stats.norm.cdf((x[:, None] - MIDDLES) / WIDTH) @ WEIGHTS

    assert stats.kstest(x, law).pvalue > 0.01
    right = stats.norm.sf((0 - MIDDLES) / WIDTH) @ WEIGHTS
    assert abs((x > 0).mean() - right) < 4 * np.sqrt(right * (1 - right) / ROWS)


def test_adjusted_chains_never_leave_where_there_is_density(executor: Executor) -> None:
    x = walked(executor, "half_line", method="mala", step_size=1.0, num_steps=250)["x"][:, 0]
    assert x.min() >= 0
    assert stats.kstest(x, "expon").pvalue > 0.01


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperatures_divide_the_energy(executor: Executor, temperature: float) -> None:
    found = walked(executor, "gaussian", method="mala", step_size=0.4, num_steps=100, temperature=temperature)
    assert_gaussian(found["x"], MEAN, temperature * COVARIANCE)


def test_without_temperature_chains_descend(executor: Executor) -> None:
    """By the gradient times half the step: both methods do the same as long as it goes down."""
    methods = np.array(["ula", "mala"] * 4)
    first = walked(executor, "gaussian", 8, method=methods, step_size=1e-9, num_steps=1, temperature=0)["x"]
    x = walked(executor, "gaussian", 8, method=methods, step_size=0.2, num_steps=7, temperature=0)["x"]
    shrunk = np.linalg.matrix_power(np.eye(2) - 0.1 * np.linalg.inv(COVARIANCE.astype(np.float64)), 7)
    np.testing.assert_allclose(x, MEAN + (first - MEAN) @ shrunk, rtol=1e-5, atol=1e-6)


def numpy_chain(
    x: np.ndarray, noise: np.ndarray, chance: np.ndarray, size: float, temperature: float
) -> tuple[np.ndarray, float]:
    """A chain of MALA in float64, after Roberts and Tweedie, by densities of proposals; and what it took."""
    precision = np.linalg.inv(COVARIANCE.astype(np.float64)) / temperature
    epsilon = temperature * size

    def log_density(x: np.ndarray) -> float:
        return -0.5 * (x - MEAN) @ precision @ (x - MEAN)

    def log_proposal(to: np.ndarray, start: np.ndarray) -> float:
        away = to - (start - 0.5 * epsilon * precision @ (start - MEAN))
        return -0.5 * away @ away / epsilon  # but for what is the same both ways

    accepted = 0
    for one, limit in zip(noise, chance, strict=True):
        to = x - 0.5 * epsilon * precision @ (x - MEAN) + np.sqrt(epsilon) * one
        ratio = log_density(to) + log_proposal(x, to) - log_density(x) - log_proposal(to, x)
        if np.log(limit) <= ratio:
            x, accepted = to, accepted + 1
    return x, accepted / len(noise)


def test_adjusted_chains_are_those_of_numpy(executor: Executor) -> None:
    """Of the same draws, at another temperature too; all keys of a call are folded from one."""
    temperatures = np.array([1.0, 0.5, 2.0, 1.0] * 2, np.float32)
    said = {"method": "mala", "temperature": temperatures, "step_size": 0.9}
    found = walked(executor, "gaussian", 8, num_steps=20, seed=3, **said)
    for row in range(8):
        key = jax.random.fold_in(jax.random.key(3), row)
        start = jax.random.normal(jax.random.fold_in(key, 2**31 - 1), (2,), jnp.float32)
        pairs = [jax.random.split(jax.random.fold_in(key, step)) for step in range(20)]
        noise = np.array([jax.random.normal(pair[0], (2,), jnp.float32) for pair in pairs], np.float64)
        chance = [1 - float(jax.random.uniform(pair[1], (), jnp.float32)) for pair in pairs]
        x, rate = numpy_chain(np.float64(start), noise, chance, 0.9, temperatures[row])
        np.testing.assert_allclose(found["x"][row], x, rtol=1e-4, atol=1e-5)
        assert found["acceptance_rate"][row] == pytest.approx(rate, abs=1e-6)
    assert 0 < found["acceptance_rate"].mean() < 1


def test_how_many_proposals_are_taken(executor: Executor) -> None:
    """As many as NumPy's chains take of other draws, and all of them as the step goes to 0."""
    sizes = (2.0, 1.0, 0.1, 1e-3)
    rates = [
        walked(executor, "gaussian", method="mala", step_size=size, num_steps=40)["acceptance_rate"].mean()
        for size in sizes
    ]
    random = np.random.default_rng(0)
    taken = [
        numpy_chain(random.normal(size=2), random.normal(size=(40, 2)), 1 - random.random(40), 1.0, 1.0)[1]
        for _ in range(100)
    ]
    error = np.std(taken) / np.sqrt(len(taken))
    assert abs(np.mean(taken) - rates[1]) < 4 * error
    assert rates == sorted(rates)
    assert rates[0] < 0.7
    assert rates[-1] > 0.999
    assert walked(executor, "gaussian", 8, method="ula")["acceptance_rate"].tolist() == [1.0] * 8


def test_annealed_chains_have_the_variance_that_their_steps_say(executor: Executor) -> None:
    """Each axis of the Gaussian shrinks and is spread anew; more steps come closer to it."""
    variances, axes = np.linalg.eigh(COVARIANCE.astype(np.float64))
    errors = []
    for num_steps in (30, 80, 200):
        x = walked(executor, "noised", num_steps=num_steps, step_size=0.8)["x"]
        expected = [recursion(0.8, num_steps, variance, ula=False) for variance in variances]
        np.testing.assert_allclose(np.var((x - MEAN) @ axes, axis=0), expected, rtol=4 * np.sqrt(2 / ROWS))
        errors.append(np.abs(np.array(expected) / (variances + WALKING.sigma_min**2) - 1).max())
    assert errors[0] > errors[1] > errors[2]


def test_the_noise_is_taken_away_in_the_end(executor: Executor, few: Executor) -> None:
    """What Tweedie's formula gives for a Gaussian is known."""
    said = {"method": ["mala", "annealed"] * 4, "sigma": 0.5, "num_steps": 9, "step_size": 0.2}
    noisy, clean = walked(executor, "noised", 8, **said)["x"], walked(few, "denoised", 8, **said)["x"]
    share = COVARIANCE @ np.linalg.inv(COVARIANCE + 0.25 * np.eye(2))
    np.testing.assert_allclose(clean, MEAN + (noisy - MEAN) @ share.T, **TOLERANCE)


def test_levels_of_noise_fall_by_the_same_factor() -> None:
    ends = {"sigma_start": np.full(4, 8, np.float32), "sigma_end": np.full(4, 0.5, np.float32)}
    steps = {"num_steps": np.full(4, 4, np.int32)}
    found = jax.jit(noise_level)({**ends, **steps}, np.array([0, 1, 4, 9], np.int32))
    np.testing.assert_allclose(found, [8, 4, 0.5, 0.5], rtol=1e-6)


@pytest.mark.parametrize("name", ["gaussian", "mixture", "quartic"])
def test_gradients_are_those_of_each_energy_alone(name: str) -> None:
    loop = LOOPS[name]
    x = jax.random.normal(jax.random.key(0), (5, *loop.shape))
    sigma = jnp.ones(5)
    energy, gradient = jax.jit(lambda x: energy_and_gradient(loop.fn, None, x, sigma, {}))(x)

    @jax.jit
    @jax.value_and_grad
    def alone(x: jax.Array) -> jax.Array:
        return loop.fn(None, x[None], sigma[:1], {})[0]

    wanted = [alone(row) for row in np.asarray(x)]
    np.testing.assert_allclose(energy, [value for value, _ in wanted], **TOLERANCE)
    np.testing.assert_allclose(gradient, [slope for _, slope in wanted], **TOLERANCE)


def test_rows_are_as_they_are_alone(few: Executor) -> None:
    """Whatever the methods, the steps, their sizes, temperatures and noise levels beside them."""
    random = np.random.default_rng(0)
    said = {
        "method": [METHODS[i % 3] for i in range(8)],
        "num_steps": [1, 2, 3, 5, 8, 13, 21, 34],
        "step_size": random.uniform(0.1, 1.5, 8),
        "temperature": random.uniform(0, 2, 8),
        "sigma": random.uniform(0.1, 2, 8),
    }
    inputs, _ = rows_of(few, "denoised", {"num_steps": np.empty(8)}, **said)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(5), np.arange(8))
    together = jax.device_get(few("denoised", inputs, keys=keys))
    for row in range(8):
        one = {name: value[row : row + 1] for name, value in inputs.items()}
        alone = jax.device_get(few("denoised", one, keys=keys[row : row + 1]))
        for name in ("x", "acceptance_rate"):
            np.testing.assert_allclose(together[name][row], alone[name][0], **TOLERANCE)


def test_looking_at_chains_changes_nothing(few: Executor) -> None:
    said = {"method": [METHODS[i % 3] for i in range(8)], "num_steps": [3, 9] * 4}
    inputs, _ = rows_of(few, "denoised", {"num_steps": np.empty(8)}, **said)
    key = jax.random.key(1)
    *_, last = few.iterate("denoised", inputs, every=2, key=key, num_rows=8)
    assert last.left == 0
    np.testing.assert_array_equal(last.steps, [3, 9] * 4)
    np.testing.assert_allclose(last.outputs["x"], few("denoised", inputs, key=key)["x"], **TOLERANCE)


def test_a_chain_that_diverges_is_reported(few: Executor) -> None:
    """Unadjusted steps that are too large go beyond all bounds; adjusted ones are not taken."""
    methods = ["mala"] * 5 + ["ula"] + ["mala"] * 2
    with pytest.raises(NonFiniteError, match=r"row 5 came out NaN or infinite at step \d"):
        walked(few, "quartic", 8, method=methods, step_size=4, num_steps=30)
    found = walked(few, "quartic", 8, method="mala", step_size=4, num_steps=30)
    assert np.isfinite(found["x"]).all()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"step_size": 0}, "step_size: expected above 0, at most 4, got 0"),
        ({"step_size": -0.1}, "step_size: expected above 0"),
        ({"step_size": float("nan")}, "step_size: expected a finite number"),
        ({"num_steps": 0}, "num_steps: expected from 1 to 1000, got 0"),
        ({"num_steps": 1001}, "num_steps: expected from 1 to 1000, got 1001"),
        ({"method": "hmc"}, "method: expected one of ula, mala, annealed, got 'hmc'"),
        ({"method": ["ula", "mala", "nuts"]}, "method: expected one of"),
        ({"temperature": -1}, "temperature: expected from 0, got -1"),
        ({"sigma": 0.01}, "sigma: expected from 0.05 to 20, got 0.01"),
        ({"label": 3}, "label: expected from 0 to 2, got 3"),
        ({"label": -1}, "label: expected from 0 to 2, got -1"),
    ],
)
def test_what_no_chain_takes(said: dict[str, object], message: str) -> None:
    fields = Walking(sigma_min=0.05, sigma_max=20.0, sigma=1.0, num_labels=3).fields
    with pytest.raises(InputError, match=message):
        checked_fields("generate", fields, said, 3)


def test_steps_are_whole() -> None:
    with pytest.raises(InputTypeError, match="num_steps: expected an integer"):
        checked_fields("generate", WALKING.fields, {"num_steps": 2.5}, 1)


def test_what_holds_where_nothing_is_said() -> None:
    says = Walking(sigma_min=0.05, sigma_max=20.0, sigma=1.0, num_steps=30, num_labels=3)
    checked = checked_fields("generate", says.fields, {"method": ["ula", "annealed", "mala"]}, 3)
    found = says.rows(checked, 3, says.options(checked))
    assert found["method"].tolist() == [0, 2, 1]
    assert found["num_steps"].tolist() == [30] * 3
    assert found["label"].tolist() == [3] * 3  # any
    np.testing.assert_allclose(found["sigma_start"], [1, 20, 1])
    np.testing.assert_allclose(found["sigma_end"], [1, 0.05, 1], rtol=1e-6)
    np.testing.assert_allclose(found["step_size"], [0.3, 1, 0.2], rtol=1e-6)
    assert {name: value.dtype for name, value in found.items() if name in LANGEVIN_INPUTS} == {
        name: spec.dtype for name, spec in LANGEVIN_INPUTS.items()
    }
