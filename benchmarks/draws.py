"""Drawing digits with the bundled models, beside the loop that people write around the same network.

The baseline of each is one `jax.jit` of all that the network does for a batch, steps included, with the
weights as arguments, compiled before; it draws the noise of a batch at once, and batch after batch is called
from Python and brought home. Both sides begin with labels on the host and end with pictures there. What they
draw has the same distribution and not the same noise. Denoisers have `families.py`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import Row, in_turns, ratio, report
from flax import nnx

from artifex.generative_models.inference import Executor, batch_generate_samples, load_exported_model
from artifex.generative_models.inference.offline.sampling import sampling

BATCH = 64
ROUNDS = 15
BATCHES = {"mnist-vae": 16, "mnist-gan": 8, "mnist-realnvp": 2}  # of a round; one of those that take steps

Draw = Callable[[Any, Any, Any, Mapping[str, Any]], Any]  # of a model, a key, labels and its settings


def vae(model: Any, key: Any, label: Any, given: Mapping[str, Any]) -> Any:
    return model.decode(jax.random.normal(key, (len(label), model.latent_dim)))


def gan(model: Any, key: Any, label: Any, given: Mapping[str, Any]) -> Any:
    of_z, *others = jax.random.split(key, 1 + len(model.sides))
    w = model.styles(jax.random.normal(of_z, (len(label), model.latent_dim)), label)
    noises = [
        jax.random.normal(one, (len(label), *side, 1)) for one, side in zip(others, model.sides, strict=True)
    ]
    return model.synthesis([w] * model.num_styles, noises)


def realnvp(model: Any, key: Any, label: Any, given: Mapping[str, Any]) -> Any:
    return model.decode(jax.random.normal(key, (len(label), model.num_dims)), label)[0]


def tokens(network: Any, key: Any, label: Any) -> Any:
    """A scan over all tokens, with a cache."""
    rows = len(label)

    def one(carried: Any, index: Any) -> Any:
        token, cache = carried
        logits, cache = network.step(token, jnp.full(rows, index), cache, label)
        token = jax.random.categorical(jax.random.fold_in(key, index), logits).astype(jnp.int32)
        return (token, cache), token

    start = jnp.zeros(rows, jnp.int32), network.empty_cache(rows, network.num_positions)
    return jax.lax.scan(one, start, jnp.arange(network.num_positions))[1].T


def autoregressive(model: Any, key: Any, label: Any, given: Mapping[str, Any]) -> Any:
    return model.pictures(tokens(model.network, key, label))


def vqvae(model: Any, key: Any, label: Any, given: Mapping[str, Any]) -> Any:
    return model.decode(tokens(model.prior, key, label).reshape(-1, *model.grid))


def energy(model: Any, key: Any, label: Any, given: Mapping[str, Any]) -> Any:
    """A scan of annealed Langevin steps with guidance, and the noise that is left removed."""
    steps = int(given["num_steps"][0])
    size, first, last = (jnp.float32(given[name][0]) for name in ("step_size", "sigma_start", "sigma_end"))
    levels = first * (last / first) ** (jnp.arange(steps + 1) / steps)
    guidance = jnp.float32(given["guidance_scale"][0])
    classes = jnp.concatenate([label, jnp.full_like(label, model.config["num_labels"])])

    def guided(x: Any, sigma: Any) -> Any:
        told, free = jnp.split(model.energy(jnp.concatenate([x, x]), jnp.full(2 * len(x), sigma), classes), 2)
        return (free + guidance * (told - free)).sum()

    gradient = jax.grad(guided)

    def one(carried: Any, step: Any) -> Any:
        x, pull = carried
        now, following = levels[step], levels[step + 1]
        missing = jnp.maximum(following**2 - ((1 - size / 2) * now) ** 2, 0)
        noise = jax.random.normal(jax.random.fold_in(key, step), x.shape)
        x = x - size * now**2 / 2 * pull + jnp.sqrt(missing) * noise
        return (x, gradient(x, following)), None

    spread = jnp.sqrt(first**2 + model.config["std"] ** 2)
    shape = (len(label), *model.config["input_shape"])
    x = model.config["mean"] + spread * jax.random.normal(key, shape)
    x, pull = jax.lax.scan(one, (x, gradient(x, first)), jnp.arange(steps))[0]
    return x - levels[-1] ** 2 * pull


BY_HAND: dict[str, Draw] = {
    "mnist-vae": vae,
    "mnist-gan": gan,
    "mnist-realnvp": realnvp,
    "mnist-autoregressive": autoregressive,
    "mnist-vqvae": vqvae,
    "mnist-energy": energy,
}


def measured(name: str) -> dict[str, Any]:
    """Median seconds of both sides, in turns, and what ours is over the other."""
    model = load_exported_model(name)[0]
    executor = Executor(model, tuned=False)
    batches = BATCHES.get(name, 1)
    label = (np.arange(batches * BATCH) % 10).astype(np.int32)
    says = executor.endpoints["generate"].says
    labelled = {"label": label} if says is not None and "label" in says.fields else {}
    first = {one: value[:BATCH] for one, value in labelled.items()}
    given = sampling(executor, BATCH, 1.0, first).rows(0, BATCH)
    graphdef, params = nnx.split(model)

    @jax.jit
    def whole(params: Any, key: Any, label: Any) -> Any:
        return BY_HAND[name](nnx.merge(graphdef, params), key, label, given)

    def by_hand() -> np.ndarray:
        keys = jax.random.split(jax.random.key(0), batches)
        starts = range(0, len(label), BATCH)
        parts = [whole(params, key, label[i : i + BATCH]) for key, i in zip(keys, starts, strict=True)]
        return np.concatenate([np.asarray(part) for part in parts])

    ours = partial(batch_generate_samples, executor, len(label), BATCH, rngs=0, **labelled)
    calls: dict[str, Callable[[], object]] = {"by hand": by_hand, "Artifex": lambda: np.asarray(ours())}
    pictures = {which: np.asarray(call()) for which, call in calls.items()}
    spread = {which: (float(x.mean()), float(x.std())) for which, x in pictures.items()}
    np.testing.assert_allclose(*spread.values(), atol=0.05, err_msg="the baseline draws something else")
    times = in_turns(calls, ROUNDS)
    return {
        "rows": len(label),
        "seconds": {which: round(statistics.median(values), 5) for which, values in times.items()},
        "over": round(1 / ratio(times, "by hand", "Artifex"), 4),
    }


def main() -> None:
    found = {name: measured(name) for name in BY_HAND}
    rows: list[Row] = [
        [name, one["rows"], f"{1e3 * one['seconds']['Artifex'] / one['rows']:.3f}", f"{one['over']:.3f}"]
        for name, one in found.items()
    ]
    head = ["", "pictures", "ms a picture", "time over the jit loop"]
    report("draws", head, rows, found)


if __name__ == "__main__":
    main()
