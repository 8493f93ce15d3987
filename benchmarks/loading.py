"""A directory of diffusers of a gigabyte, from a warm page cache to the device.

Both baselines read the bytes of the file and place them, a weight at a time: one as they are, which JAX
takes over as they lie in memory, and one with the axes in the order that the model has. Peak memory is that
of a process of its own, less what it had before it loaded.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
from common import in_turns, report

from artifex.generative_models.core.config import abstract_model, write_json
from artifex.generative_models.inference.formats.diffusers import find_diffusers
from artifex.generative_models.inference.formats.safetensors import stored_arrays, write_arrays
from artifex.generative_models.inference.pipeline import load_pipeline

DIT = {"num_attention_heads": 16, "num_layers": 12, "attention_head_dim": 72}
ROUNDS = 7
STATUS = Path("/proc/self/status")


def written(folder: Path) -> Path:
    """A diffusion transformer with random weights."""
    config = {"network": "dit", "arguments": DIT, "num_labels": 1000}
    template = abstract_model("denoiser", config)
    write_json(folder / "config.json", {"_class_name": "DiTTransformer2DModel", **DIT})
    from flax import nnx

    shapes = {path: leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(template))}
    random = np.random.default_rng(0)
    arrays = {}
    for name, (path, axes) in template.published_weights().items():
        shape = shapes[path]
        stored = shape if axes is None else tuple(shape[axes.index(axis)] for axis in range(len(axes)))
        arrays[name] = random.standard_normal(stored, np.float32)
    write_arrays(folder / "diffusion_pytorch_model.safetensors", arrays)
    return folder


def plainly(folder: Path) -> list[jax.Array]:
    """Reads and places the bytes."""
    stored = stored_arrays(folder / "diffusion_pytorch_model.safetensors").values()
    return [jax.device_put(array.read()) for array in stored]


def turned(folder: Path) -> list[jax.Array]:
    """Reads them, and places matrices with their axes in turn."""
    stored = stored_arrays(folder / "diffusion_pytorch_model.safetensors").values()
    return [jax.device_put(array.read().T).block_until_ready() for array in stored]


def load(folder: Path) -> object:
    from flax import nnx

    return nnx.state(find_diffusers(folder).load())


def peak(folder: Path) -> float:
    """Peak memory of loading, over the bytes of the weights."""
    done = subprocess.run([sys.executable, __file__, str(folder)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_peak(folder: Path) -> None:
    from flax import nnx

    def high_water() -> int:  # unlike that of getrusage, not of the process that started this one
        (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024

    jax.numpy.zeros(1).block_until_ready()
    abstract_model("denoiser", {"network": "dit", "arguments": DIT, "num_labels": 1000})
    before = high_water()
    model = find_diffusers(folder).load()
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))
    print((high_water() - before) / num_bytes)


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = written(Path(temporary))
        size = (folder / "diffusion_pytorch_model.safetensors").stat().st_size
        peaks = [peak(folder) for _ in range(3)]
        load_pipeline(folder)  # after which there is a snapshot
        calls = {
            "read and place": lambda: plainly(folder),
            "read, turn and place": lambda: turned(folder),
            "load": lambda: load(folder),
            "second start": lambda: load_pipeline(folder).executor.weights,
        }
        for call in calls.values():
            call()
        times = in_turns(calls, ROUNDS)

    def over(name: str, baseline: str) -> float:
        return statistics.median(t / b for t, b in zip(times[name], times[baseline], strict=True))

    baselines = ("read and place", "read, turn and place")
    rows: list[list[object]] = [
        [name, f"{statistics.median(seconds):.3f} s", *[f"{over(name, b):.2f}" for b in baselines]]
        for name, seconds in times.items()
    ]
    rows.append(["peak memory over the weights' bytes", f"{max(peaks):.3f}", "", ""])
    facts = {
        "gigabytes": round(size / 1e9, 3),
        "load_over_reading": round(over("load", baselines[0]), 3),
        "load_over_reading_and_turning": round(over("load", baselines[1]), 3),
        "second_start_over_load": round(over("second start", "load"), 3),
        "peak_over_bytes": round(max(peaks), 3),
    }
    columns = [f"{size / 1e9:.2f} GB of safetensors", "", "over reading", "over reading and turning"]
    report("loading", columns, rows, facts)


if __name__ == "__main__":
    measure_peak(Path(sys.argv[1])) if len(sys.argv) > 1 else main()
