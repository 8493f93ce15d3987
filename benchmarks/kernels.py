"""The VAE over all that tuning may choose, its decoder beside the convolutions that it equals.

Each share is the median over rounds of the rate over the matrix-multiplication rate of the same round.

Then networks of other kinds: the time of one batch as compiled by default over that of XLA's plain compile.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from functools import partial
from itertools import product

import jax
import numpy as np
from batch_sizes import decode_flops, encode_flops
from common import digits, in_turns, matmul_flops, ratio, report, seconds
from flax import nnx
from networks import networks

from artifex.generative_models.core.nn import SubpixelConv
from artifex.generative_models.inference import Executor, load_exported_model
from artifex.generative_models.inference.executor.settings import Setting, Tuned
from artifex.generative_models.inference.measure.throughput import random_rows
from artifex.generative_models.models.vae import VAE

ROWS = 4096
ROUNDS = 7
BATCHES = (32, 64, 128, 256)
IN_FLIGHT = (1, 2, 3)


def convolved_up(up: SubpixelConv, x):
    batch, height, width, _ = x.shape
    y = up.conv(x).reshape(batch, height, width, 2, 2, -1)
    return y.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, -1)


def convolved_decode(model: VAE, keys, inputs):
    """The decoder's modules one by one, with depth-to-space after each."""
    decoder = model.decoder
    x = decoder.stem(inputs["z"]).reshape(-1, *decoder.sizes[0], decoder.features[0])
    for up, (height, width) in zip(decoder.ups, decoder.sizes[1:], strict=True):
        x = convolved_up(up, nnx.relu(x))[:, :height, :width]
    return {"x": nnx.sigmoid(x)}


def defaults() -> None:
    """What the rule for library fusions gives and takes, where nothing was tuned.

    Where it asks for none, the default is XLA's plain compile, and there is nothing to measure.
    """
    rows, ratios = [], {}
    models = {"mnist-vae": load_exported_model("mnist-vae")[0], **networks()}
    for name, network in models.items():
        for endpoint in network.endpoints():
            for size in (1, 16, 32, 64):
                plain = Tuned(size, 1, {size: Setting()})
                calls = {}
                for form, tuned in (("default", False), ("plain", {endpoint: plain})):
                    executor = Executor(network, batch_sizes=(size,), tuned=tuned)
                    inputs = random_rows(executor.spec(endpoint)[0], size)
                    key = jax.random.key(0) if executor.draws(endpoint) else None
                    calls[form] = partial(executor, endpoint, inputs, key=key)
                    if form == "default" and not executor._catalog.find(endpoint, {}).setting(size).fusion:
                        break
                    jax.block_until_ready(calls[form]())  # compiles
                if len(calls) == 1:
                    rows.append([name, endpoint, size, "", "", "the same"])
                    continue
                times = in_turns(calls, 45)
                slower = 1 / ratio(times, "plain", "default")
                ratios[f"{name} {endpoint} {size}"] = round(slower, 3)
                default, without = (f"{statistics.median(times[form]) * 1e3:.2f}" for form in calls)
                rows.append([name, endpoint, size, default, without, f"{slower:.2f}"])
    columns = ["network", "endpoint", "batch", "default ms", "plain ms", "default / plain"]
    report("kernels: defaults", columns, rows, {"slowest": max(ratios.values()), "ratios": ratios})


def kernels() -> None:
    model, _, _ = load_exported_model("mnist-vae")
    own = model.endpoints()
    z = np.random.default_rng(0).standard_normal((ROWS, model.latent_dim), np.float32)
    jobs = {
        "encode": ({"x": digits(ROWS)}, encode_flops(model), {"convolutions": own["encode"]}),
        "decode": (
            {"z": z},
            decode_flops(model),
            {"products": own["decode"], "convolutions": replace(own["decode"], fn=convolved_decode)},
        ),
    }
    facts, rows = {}, []
    for name, (inputs, flops, forms) in jobs.items():
        calls = {}
        for (form, endpoint), size, fusion in product(forms.items(), BATCHES, (False, True)):
            for in_flight in IN_FLIGHT if size == 64 else IN_FLIGHT[-1:]:
                tuned = {name: Tuned(size, in_flight, {size: Setting(fusion)})}
                executor = Executor(model, {name: endpoint}, batch_sizes=(size,), tuned=tuned)
                call = partial(executor, name, inputs)
                jax.block_until_ready(call())  # compiles
                calls[form, size, fusion, in_flight] = call
        found = {setting: ([], []) for setting in calls}
        for _ in range(ROUNDS):
            ceiling = matmul_flops()
            for setting, call in calls.items():
                rate = ROWS / seconds(call)
                found[setting][0].append(rate)
                found[setting][1].append(rate * flops / ceiling)
        rates, shares = ({s: statistics.median(v[i]) for s, v in found.items()} for i in (0, 1))
        for setting in sorted(rates, key=shares.get, reverse=True):
            form, size, fusion, in_flight = setting
            rows.append(
                [
                    *(name, form, size, "on" if fusion else "off", in_flight),
                    f"{rates[setting]:,.0f}",
                    f"{shares[setting]:.0%}",
                ]
            )
        facts[name] = {"flops_per_row": flops, "best_share_of_matmul": round(max(shares.values()), 3)}
    columns = ["endpoint", "form", "batch", "fusions", "in flight", "rows/s", "of matmul rate"]
    report("kernels", columns, rows, facts)


def main() -> None:
    defaults()
    kernels()


if __name__ == "__main__":
    main()
