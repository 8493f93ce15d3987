"""The bundled VAE beside the same network with the same weights in PyTorch on the CPU.

PyTorch may choose among forms of each function, batch sizes, and its intra-op threads or two Python
threads with one each; the fastest is the baseline, and so is the fastest of the natural form, the one a
textbook writes. Its pictures are tensors in memory already; Artifex is given NumPy rows. Outputs are
compared before anything is timed.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product

import numpy as np
from batch_sizes import decode_flops, encode_flops
from common import digits, in_turns, matmul_flops, ratio, report, seconds

from artifex.generative_models.inference import Executor, load_exported_model
from artifex.generative_models.inference.executor.settings import Setting, Tuned

try:
    import torch
    import torch.nn.functional as F
except ModuleNotFoundError:
    sys.exit("PyTorch is missing: python -m pip install -r benchmarks/requirements-pytorch.txt")

ROWS = 8192
TRIAL_ROWS = 1024
ROUNDS = 9
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
COMPILED = (64, 256)  # batch sizes; compiling each takes tens of seconds
OUR_BATCHES = (32, 64, 128, 256)
FINALISTS = 3
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
CHANNELS_LAST = {"memory_format": torch.channels_last}


def cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def tensor(weight) -> torch.Tensor:
    return torch.from_numpy(np.array(weight[...]))


def conv_encode(model, **layout):
    convs = [
        (tensor(conv.kernel).permute(3, 2, 0, 1).contiguous(**layout), tensor(conv.bias))
        for conv in model.encoder.convs
    ]
    height, width = -(-model.input_shape[0] // 2 ** len(convs)), -(-model.input_shape[1] // 2 ** len(convs))
    head, bias = tensor(model.encoder.head.kernel).T.contiguous(), tensor(model.encoder.head.bias)
    if not layout:  # PyTorch flattens channels first, so the weights are put in that order
        head = head.reshape(len(head), height, width, -1).permute(0, 3, 1, 2).reshape(len(head), -1)

    def encode(x):  # [batch, channels, h, w]
        for weight, bias_ in convs:
            x = F.relu(F.conv2d(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)), weight, bias_, 2))
        x = x.permute(0, 2, 3, 1) if layout else x
        return F.linear(x.reshape(len(x), -1), head, bias)

    return encode


def linear_encode(model):
    convs = [
        (tensor(conv.kernel).reshape(-1, conv.out_features).T.contiguous(), tensor(conv.bias))
        for conv in model.encoder.convs
    ]
    head, bias = tensor(model.encoder.head.kernel).T.contiguous(), tensor(model.encoder.head.bias)

    def encode(x):  # [batch, channels, h, w]
        x = x.permute(0, 2, 3, 1)
        for weight, bias_ in convs:
            x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
            batch, height, width, channels = x.shape
            x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 2, 4, 5)
            x = F.relu(F.linear(x.reshape(batch, height // 2, width // 2, -1), weight, bias_))
        return F.linear(x.reshape(len(x), -1), head, bias)

    return encode


def stem_of(model, **layout):
    """Weights of the decoder's first layer, for channels first or last, and the shape it gives."""
    decoder = model.decoder
    shape = (*decoder.sizes[0], decoder.features[0])
    kernel, bias = tensor(decoder.stem.kernel).T, tensor(decoder.stem.bias)
    if not layout:
        kernel = kernel.reshape(*shape, -1).permute(2, 0, 1, 3).reshape(len(kernel), -1)
        bias = bias.reshape(shape).permute(2, 0, 1).reshape(-1)
    kernel, bias = kernel.contiguous(), bias.contiguous()

    def stem(z):
        x = F.linear(z, kernel, bias)
        if layout:
            return x.reshape(len(x), *shape).permute(0, 3, 1, 2)
        return x.reshape(len(x), shape[2], *shape[:2])

    return stem


def subpixel_taps(up) -> torch.Tensor:
    """Kernel [u, v, in, a, b, out] of a sub-pixel convolution."""
    side = up.conv.kernel_size[0]
    return tensor(up.conv.kernel).reshape(side, side, -1, 2, 2, up.conv.out_features // 4)


def transposed_decode(model, **layout):
    """A sub-pixel convolution of side k is a transposed one of side 2k, with a bias for each parity."""
    stem, ups = stem_of(model, **layout), []
    for up, (height, width) in zip(model.decoder.ups, model.decoder.sizes[1:], strict=True):
        taps = subpixel_taps(up)
        side, margin = len(taps), 2 * (len(taps) - 1)
        weight = torch.zeros(taps.shape[2], taps.shape[5], 2 * side, 2 * side)
        for u, v, a, b in np.ndindex(side, side, 2, 2):
            weight[:, :, margin - 2 * u + a, margin - 2 * v + b] = taps[u, v, :, a, b]
        bias = tensor(up.conv.bias).reshape(2, 2, -1).permute(2, 0, 1)
        bias = bias.tile(1, -(-height // 2), -(-width // 2))[None, :, :height, :width].contiguous(**layout)
        crop = (..., slice(margin, margin + height), slice(margin, margin + width))
        ups.append((weight.contiguous(**layout), bias, crop))

    def decode(z):
        x = stem(z)
        for weight, bias, crop in ups:
            x = F.conv_transpose2d(F.relu(x), weight, stride=2)[crop] + bias
        return torch.sigmoid(x)

    return decode


def shuffled_decode(model, **layout):
    """A convolution, then PixelShuffle."""
    stem, ups = stem_of(model, **layout), []
    for up, size in zip(model.decoder.ups, model.decoder.sizes[1:], strict=True):
        taps = subpixel_taps(up)
        weight = taps.permute(5, 3, 4, 2, 0, 1).reshape(-1, taps.shape[2], len(taps), len(taps))
        bias = tensor(up.conv.bias).reshape(4, -1).T.reshape(-1).contiguous()
        ups.append((weight.contiguous(**layout), bias, size))

    def decode(z):
        x = stem(z)
        for weight, bias, (height, width) in ups:
            x, reach = F.relu(x), weight.shape[-1] - 1
            x = F.conv2d(F.pad(x, (0, reach, 0, reach)) if reach else x, weight, bias)
            x = F.pixel_shuffle(x, 2)[:, :, :height, :width]
        return torch.sigmoid(x)

    return decode


def linear_decode(model):
    """Patches times a matrix, then depth-to-space."""
    stem = stem_of(model, **CHANNELS_LAST)
    ups = [
        (
            tensor(up.conv.kernel).reshape(-1, up.conv.out_features).T.contiguous(),
            tensor(up.conv.bias),
            up.conv.kernel_size[0],
            size,
        )
        for up, size in zip(model.decoder.ups, model.decoder.sizes[1:], strict=True)
    ]

    def decode(z):
        x = stem(z).permute(0, 2, 3, 1)
        for weight, bias, side, (height, width) in ups:
            x = F.relu(x)
            batch, h, w, _ = x.shape
            if side > 1:
                padded = F.pad(x, (0, 0, 0, side - 1, 0, side - 1))
                x = torch.cat([padded[:, u : u + h, v : v + w] for u, v in np.ndindex(side, side)], -1)
            x = F.linear(x, weight, bias).reshape(batch, h, w, 2, 2, -1).permute(0, 1, 3, 2, 4, 5)
            x = x.reshape(batch, 2 * h, 2 * w, -1)[:, :height, :width]
        return torch.sigmoid(x).permute(0, 3, 1, 2)

    return decode


def torch_call(form, x: torch.Tensor, batch_size: int, pool: ThreadPoolExecutor | None):
    """Runs a form over all rows, in this thread or in those of a pool."""

    @torch.inference_mode()
    def run(start: int) -> None:
        out[start : start + batch_size] = form(x[start : start + batch_size])

    with torch.inference_mode():
        out = torch.empty(len(x), *form(x[:batch_size]).shape[1:])
    starts = range(0, len(x), batch_size)
    return lambda: list(map(run, starts) if pool is None else pool.map(run, starts))


def settings(forms, x: torch.Tensor, batch_sizes, pools):
    """Every form, batch size and use of threads: the rows of a trial, and the call."""
    return {
        (label, size, threads): (count, torch_call(form, x[:count], size, pool))
        for label, form in forms.items()
        for size in batch_sizes
        for threads, pool in pools.items()
        for count in [min(len(x), 32 * size)]
    }


def trial(calls):
    """Rows a second of each setting."""
    rates = {}
    for setting, (count, call) in calls.items():
        call()
        rates[setting] = count / min(seconds(call) for _ in range(2))
    return rates


def fastest(rates):
    """The settings that are measured again over all rows, in turns: a trial is short."""
    return sorted(rates, key=rates.get, reverse=True)[:FINALISTS]


def check(forms, x: torch.Tensor, wanted: np.ndarray) -> None:
    """Raises unless every form computes what Artifex does."""
    with torch.inference_mode():
        for label, form in forms.items():
            found = form(x)
            found = found.permute(0, 2, 3, 1) if found.ndim == 4 else found
            np.testing.assert_allclose(found, wanted, **TOLERANCE, err_msg=label)


def artifex_calls(model, endpoint: str, inputs):
    """The executor at what tuning would try."""
    calls = {}
    for size, fusion in product(OUR_BATCHES, (False, True)):
        tuned = {endpoint: Tuned(size, cores() + 1, {size: Setting(fusion)})}
        executor = Executor(model, batch_sizes=(size,), tuned=tuned)
        calls[size, fusion] = ROWS, partial(executor, endpoint, inputs)
    return calls


def compare(model, endpoint: str, forms, natural, rows: np.ndarray, inputs, flops: int, pools):
    """One function: rows of the table, and facts."""
    x = torch.from_numpy(rows)
    ours = artifex_calls(model, endpoint, inputs)
    names = ("mean", "log_var") if endpoint == "encode" else ("x",)
    outputs = Executor(model, batch_sizes=(64,))(endpoint, {name: v[:64] for name, v in inputs.items()})
    check(forms, x[:64], np.concatenate([np.asarray(outputs[name]) for name in names], -1))

    trial_rows = x[:TRIAL_ROWS]
    tried = trial(settings(forms, trial_rows, BATCH_SIZES, pools))
    best = max(tried, key=tried.get)
    if shutil.which("c++"):  # torch.compile builds with it
        forms = forms | {f"{best[0]}, compiled": torch.compile(forms[best[0]], dynamic=False)}
        compiled = {label: forms[label] for label in [*forms][-1:]}
        tried |= trial(settings(compiled, trial_rows, COMPILED, pools))
    plainly = {setting: rate for setting, rate in tried.items() if setting[0] in natural}
    finalists = dict.fromkeys((*fastest(tried), *fastest(plainly)))
    calls = {
        (label, *rest): torch_call(forms[label], x, rest[0], pools[rest[1]]) for label, *rest in finalists
    }
    calls |= {setting: ours[setting][1] for setting in fastest(trial(ours))}
    for call in calls.values():
        call()
    before = matmul_flops()
    times = in_turns(calls, ROUNDS)
    peak = max(before, matmul_flops())  # what else runs on the machine only lowers it
    medians = {setting: statistics.median(times[setting]) for setting in calls}
    best = min(finalists, key=medians.get)
    plain = min((setting for setting in finalists if setting in plainly), key=medians.get)
    mine = min((setting for setting in calls if setting in ours), key=medians.get)
    times = {"best": times[best], "natural": times[plain], "Artifex": times[mine]}
    rates = {label: ROWS / statistics.median(values) for label, values in times.items()}
    titles = {
        "best": f"PyTorch, best: {best[0]}, batch {best[1]}, {best[2]}",
        "natural": f"PyTorch, natural: {plain[0]}, batch {plain[1]}, {plain[2]}",
        "Artifex": f"Artifex, batch {mine[0]}{', fusions' if mine[1] else ''}",
    }
    over = {label: ratio(times, label, "Artifex") for label in ("best", "natural")}
    table = [
        [
            f"{endpoint}: {titles[label]}",
            f"{rates[label]:,.0f}",
            f"{rates[label] * flops / peak:.0%}",
            f"{over.get(label, 1):.2f}",
        ]
        for label in times
    ]
    return table, {
        "settings": titles,
        "rows_per_second": {label: round(rate) for label, rate in rates.items()},
        "share_of_matmul": {label: round(rate * flops / peak, 3) for label, rate in rates.items()},
        "over_best_form": round(over["best"], 3),
        "over_natural_form": round(over["natural"], 3),
    }


def main() -> None:
    model, _, _ = load_exported_model("mnist-vae")
    pools = {
        f"{torch.get_num_threads()} intra-op threads": None,
        f"{cores()} Python threads": ThreadPoolExecutor(
            cores(), initializer=torch.set_num_threads, initargs=(1,)
        ),
    }
    images = digits(ROWS)
    z = np.random.default_rng(0).standard_normal((ROWS, model.latent_dim), np.float32)
    encode_rows, encode_facts = compare(
        model,
        "encode",
        {
            "Conv2d": conv_encode(model),
            "Conv2d channels last": conv_encode(model, **CHANNELS_LAST),
            "patches and Linear": linear_encode(model),
        },
        ("Conv2d", "Conv2d channels last"),
        images.transpose(0, 3, 1, 2),
        {"x": images},
        encode_flops(model),
        pools,
    )
    decode_rows, decode_facts = compare(
        model,
        "decode",
        {
            "ConvTranspose2d": transposed_decode(model),
            "ConvTranspose2d channels last": transposed_decode(model, **CHANNELS_LAST),
            "Conv2d and PixelShuffle": shuffled_decode(model),
            "Conv2d and PixelShuffle channels last": shuffled_decode(model, **CHANNELS_LAST),
            "patches and Linear": linear_decode(model),
        },
        ("ConvTranspose2d", "ConvTranspose2d channels last"),
        z,
        {"z": z},
        decode_flops(model),
        pools,
    )
    columns = ["8,192 rows", "rows/s", "of matmul rate", "Artifex over it"]
    facts = {"encode": encode_facts, "decode": decode_facts, "torch": torch.__version__}
    report("pytorch", columns, [*encode_rows, *decode_rows], facts)


if __name__ == "__main__":
    main()
