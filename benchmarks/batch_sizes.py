"""Rows a second of each batch size, and the share of the machine's matrix-multiplication rate."""

from __future__ import annotations

import statistics
from functools import partial
from itertools import pairwise

import numpy as np
from common import digits, matmul_flops, report, seconds

from artifex.generative_models.inference import Executor, load_exported_model
from artifex.generative_models.models.vae import VAE

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ROWS = 8192
ROUNDS = 5


def encode_flops(model: VAE) -> int:
    """Multiplications and additions that one encoded row needs; what falls on padding is not needed."""
    height, width, channels = model.input_shape
    flops = 0
    for features in model.encoder_features:
        flops += 2 * height * width * channels * features  # each pixel falls under one 2×2 window
        height, width, channels = -(-height // 2), -(-width // 2), features
    return flops + 2 * height * width * channels * 2 * model.latent_dim


def decode_flops(model: VAE) -> int:
    """Multiplications and additions that one decoded row needs; cropped pixels and padding are not needed."""
    sizes = model.decoder.sizes
    channels = (*model.decoder_features, model.input_shape[2])
    flops = 2 * model.latent_dim * sizes[0][0] * sizes[0][1] * channels[0]
    for level, (size, doubled) in enumerate(pairwise(sizes)):
        reach = range(model.decoder.ups[level].kernel_size)
        taps = [
            sum(o // 2 + k < n for o in range(out) for k in reach)
            for n, out in zip(size, doubled, strict=True)
        ]
        flops += 2 * taps[0] * taps[1] * channels[level] * channels[level + 1]
    return flops


def main() -> None:
    model, _, _ = load_exported_model("mnist-vae")
    jobs = {
        "encode": ({"x": digits(ROWS)}, encode_flops(model)),
        "decode": (
            {"z": np.random.default_rng(0).standard_normal((ROWS, model.latent_dim), np.float32)},
            decode_flops(model),
        ),
    }
    facts, rows = {}, []
    for endpoint, (inputs, flops) in jobs.items():
        rates, shares = {}, {}
        for size in BATCH_SIZES:
            one_size = Executor(model, batch_sizes=(size,))
            count = min(ROWS, 512 * size)
            part = {name: value[:count] for name, value in inputs.items()}
            run = partial(one_size, endpoint, part)
            run()  # compiles
            rounds = [(matmul_flops(), count / seconds(run)) for _ in range(ROUNDS)]
            rates[size] = statistics.median(rate for _, rate in rounds)
            shares[size] = statistics.median(flops * rate / peak for peak, rate in rounds)
        best = max(rates, key=rates.get)
        for size in BATCH_SIZES:
            rows.append(
                [endpoint, size, f"{rates[size]:,.0f}", f"{shares[size]:.0%}", "best" if size == best else ""]
            )
        facts[endpoint] = {
            "flops_per_row": flops,
            "rows_per_second": {size: round(rate) for size, rate in rates.items()},
            "share_of_matmul": {size: round(share, 3) for size, share in shares.items()},
            "largest_over_best": round(rates[BATCH_SIZES[-1]] / rates[best], 3),
        }
    report("batch_sizes", ["endpoint", "batch size", "rows/s", "of matmul rate", ""], rows, facts)


if __name__ == "__main__":
    main()
