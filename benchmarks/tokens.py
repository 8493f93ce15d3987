"""Tokens drawn one after the other: 784 pixels of 16 levels, by a transformer with random weights.

Artifex's `generate` is compared with a loop that evaluates all that was drawn at each step, with a loop that
is written by hand around the same network and its cache, and with the same network in PyTorch: as
transformers runs it with its cache, and as a loop by hand whose cache has its place from the start. All
take the likeliest token, and these are compared before anything is timed.

Needs PyTorch and transformers beside Artifex: `benchmarks/requirements-pytorch.txt`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import Row, in_turns, ratio, report
from flax import nnx

from artifex.generative_models.inference import Executor
from artifex.generative_models.models.gpt2 import GPT2

try:
    import torch
    import transformers
    from torch.nn import functional
except ModuleNotFoundError:
    sys.exit("PyTorch is missing: python -m pip install -r benchmarks/requirements-pytorch.txt")

PIXELS, LEVELS = 784, 16
FEATURES, LAYERS, HEADS = 64, 4, 4
CUTS = 7  # lengths that the loop without a cache is compiled for
OURS, BY_HAND, UNCACHED = "Artifex", "by hand", "without a cache"
NUMBERS = {
    "temperature": np.float32(1),
    "greedy": np.True_,
    "top_k": np.int32(LEVELS + 1),
    "top_p": np.float32(1),
    "min_p": np.float32(0),
    "repetition_penalty": np.float32(1),
}


def made() -> GPT2:
    """A network whose likeliest tokens are other ones from step to step."""
    model = GPT2(LEVELS + 1, PIXELS + 1, FEATURES, LAYERS, HEADS, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(model)
    random = np.random.default_rng(0)
    weights = jax.tree.map(lambda leaf: leaf + 0.3 * random.standard_normal(leaf.shape, np.float32), state)
    return nnx.merge(graphdef, weights)


def artifex_call(model: GPT2, rows: int) -> Callable[[], np.ndarray]:
    executor = Executor(model, batch_sizes=(rows,))
    inputs = {
        "tokens": np.full((rows, 1), LEVELS, np.int32),
        "prompt_length": np.ones(rows, np.int32),
        "room": np.ones((rows, PIXELS), bool),
        **{name: np.full(rows, value) for name, value in NUMBERS.items()},
    }
    return lambda: np.asarray(
        executor("generate", inputs, key=jax.random.key(0), max_new_tokens=PIXELS)["tokens"]
    )


def by_hand(model: GPT2, rows: int) -> Callable[[], np.ndarray]:
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state: Any) -> jax.Array:
        network = nnx.merge(graphdef, state).network
        first = jnp.full(rows, LEVELS, jnp.int32)

        def step(carried: Any, index: jax.Array) -> Any:
            token, cache = carried
            logits, cache = network.step(token, jnp.full(rows, index), cache)
            token = jnp.argmax(logits, -1).astype(jnp.int32)
            return (token, cache), token

        start = first, network.empty_cache(rows, PIXELS + 1)
        _, drawn = jax.lax.scan(step, start, jnp.arange(1, PIXELS + 1))
        return jnp.concatenate([first[:, None], drawn.T], 1)

    return lambda: np.asarray(run(state))


def uncached(model: GPT2, rows: int) -> Callable[[], np.ndarray]:
    graphdef, state = nnx.split(model)
    together = PIXELS // CUTS

    @partial(jax.jit, donate_argnums=1)
    def go_on(state: Any, tokens: jax.Array, first: jax.Array, read: jax.Array) -> jax.Array:
        network = nnx.merge(graphdef, state).network

        def step(i: jax.Array, tokens: jax.Array) -> jax.Array:
            logits = network(tokens[:, : len(read)])
            token = jnp.argmax(jnp.take(logits, i - 1, axis=1), -1).astype(jnp.int32)
            return jax.lax.dynamic_update_slice(tokens, token[:, None], (0, i))

        return jax.lax.fori_loop(first, first + together, step, tokens)

    def run() -> np.ndarray:
        tokens = jnp.full((rows, PIXELS + 1), LEVELS, jnp.int32)
        for first in range(1, PIXELS + 1, together):
            tokens = go_on(state, tokens, jnp.int32(first), jnp.zeros(first + together - 1))
        return np.asarray(tokens)

    return run


def torch_network(model: GPT2) -> Any:
    """The same network in transformers."""
    config = transformers.GPT2Config(
        vocab_size=LEVELS + 1, n_positions=PIXELS + 1, n_embd=FEATURES, n_layer=LAYERS, n_head=HEADS,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    ours = model.network
    weights = {
        "wte.weight": ours.symbols.embedding,
        "wpe.weight": ours.positions.embedding,
        "ln_f.weight": ours.norm.scale,
        "ln_f.bias": ours.norm.bias,
    }
    for i, block in enumerate(ours.blocks):
        for norm, layer in (("ln_1", block.norm_1), ("ln_2", block.norm_2)):
            weights |= {f"h.{i}.{norm}.weight": layer.scale, f"h.{i}.{norm}.bias": layer.bias}
        linear = {
            "attn.c_attn": block.attention.to_qkv,
            "attn.c_proj": block.attention.to_out,
            "mlp.c_fc": block.feed_forward.proj_in,
            "mlp.c_proj": block.feed_forward.proj_out,
        }
        for name, layer in linear.items():
            weights |= {f"h.{i}.{name}.weight": layer.kernel, f"h.{i}.{name}.bias": layer.bias}
    network = transformers.GPT2LMHeadModel(config).eval()
    network.transformer.load_state_dict(
        {name: torch.from_numpy(np.array(value[...])) for name, value in weights.items()}, strict=True
    )
    return network


def transformers_call(network: Any, rows: int) -> Callable[[], np.ndarray]:
    first = torch.full((rows, 1), LEVELS)
    given = {
        "max_new_tokens": PIXELS,
        "do_sample": False,
        "pad_token_id": 0,
        "attention_mask": torch.ones_like(first),
    }
    return lambda: network.generate(first, **given).numpy()


def torch_by_hand(network: Any, rows: int) -> Callable[[], np.ndarray]:
    gpt, size = network.transformer, FEATURES // HEADS

    @torch.inference_mode()
    def run() -> np.ndarray:
        shape = rows, HEADS, PIXELS + 1, size
        caches = [(torch.zeros(shape), torch.zeros(shape)) for _ in range(LAYERS)]
        tokens = torch.full((rows, PIXELS + 1), LEVELS)
        for i in range(PIXELS):
            x = gpt.wte.weight[tokens[:, i]] + gpt.wpe.weight[i]
            for block, (keys, values) in zip(gpt.h, caches, strict=True):
                q, k, v = block.attn.c_attn(block.ln_1(x)).view(rows, 3, HEADS, 1, size).unbind(1)
                keys[:, :, i : i + 1], values[:, :, i : i + 1] = k, v
                seen = functional.scaled_dot_product_attention(q, keys[:, :, : i + 1], values[:, :, : i + 1])
                x = x + block.attn.c_proj(seen.reshape(rows, FEATURES))
                h = functional.gelu(block.mlp.c_fc(block.ln_2(x)), approximate="tanh")
                x = x + block.mlp.c_proj(h)
            tokens[:, i + 1] = (gpt.ln_f(x) @ gpt.wte.weight.T).argmax(-1)
        return tokens.numpy()

    return run


def cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def with_threads(call: Callable[[], np.ndarray], threads: int) -> Callable[[], np.ndarray]:
    def run() -> np.ndarray:
        torch.set_num_threads(threads)
        return call()

    return run


def compared(model: GPT2, rows: int, rounds: int) -> tuple[list[Row], dict[str, object]]:
    """Rows of the table, and facts."""
    network = torch_network(model)
    forms = {
        "transformers": transformers_call(network, rows),
        "PyTorch by hand": torch_by_hand(network, rows),
    }
    torches = {
        f"{name}, {threads} threads": with_threads(call, threads)
        for name, call in forms.items()
        for threads in sorted({1, cores()})
    }
    calls = {OURS: artifex_call(model, rows), BY_HAND: by_hand(model, rows), **torches}
    slow = {UNCACHED: uncached(model, rows)}
    wanted = calls[OURS]()
    for name, call in (calls | slow).items():
        same = (call() == wanted).mean()
        assert same > 0.99, f"{name}: {same:.1%} of the tokens are those of Artifex"
    times = in_turns({OURS: calls[OURS], BY_HAND: calls[BY_HAND]}, 4 * rounds)
    of_by_hand = 1 / ratio(times, BY_HAND, OURS)
    times = in_turns(calls, rounds)
    times |= in_turns(slow | {f"{OURS} ": calls[OURS]}, 1)
    best = min(torches, key=lambda name: statistics.median(times[name]))
    facts = {
        "over_uncached": round(ratio(times, UNCACHED, f"{OURS} "), 2),
        "over_pytorch": round(ratio(times, best, OURS), 2),
        "of_by_hand": round(of_by_hand, 3),
        "best_of_pytorch": best,
    }
    ours = statistics.median(times[OURS])
    table: list[Row] = []
    for name in (*calls, *slow):
        middle = statistics.median(times[name])
        table.append(
            [name, rows, f"{middle:.2f} s", f"{rows * PIXELS / middle:,.0f}", f"{middle / ours:.2f}"]
        )
    return table, {f"rows_{rows}": facts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    model, table, facts = made(), [], {}
    for rows in args.rows:
        found, fact = compared(model, rows, args.rounds)
        table += found
        facts |= fact
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    report("tokens", ["784 pixels", "rows", "", "tokens/s", "times as long"], table, {**facts, **versions})


if __name__ == "__main__":
    main()
