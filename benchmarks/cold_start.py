"""From the start of a process to the first samples, in stages, and what the caches save of it.

Four kinds of starts: the first, with an empty cache; one that finds JAX's compilation cache filled; one that
finds a snapshot (`load_pipeline`); and the whole command `artifex generate mnist-vae -n 64` in a first
and in a second start, beside the least that any program with JAX does. A server's start, which compiles every
endpoint for every batch size, is measured as well. The stages are carried out by this script in a process of
its own, one after another; what it does not see is the interpreter's own start and end.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

ROUNDS = 5
SERVER_ROUNDS = 1
STAGES = ("imports", "restore", "trace", "compile", "run", "write")
PYTHON, ARTIFEX = sys.executable, str(Path(sys.executable).with_name("artifex"))
BASELINE = [PYTHON, "-c", "import jax; jax.numpy.zeros(1).block_until_ready()"]
GENERATE = [ARTIFEX, "generate", "mnist-vae", "-n", "64", "-o", "samples.png"]
COMMANDS = {
    "interpreter": [PYTHON, "-c", "pass"],
    "import artifex": [PYTHON, "-c", "import artifex"],
    "artifex --help": [ARTIFEX, "--help"],
    "jax.numpy.zeros(1)": BASELINE,
}


def opened(kind: str) -> InferencePipeline:
    """The model, from a snapshot or restored from its checkpoint."""
    from artifex.generative_models.inference.formats.loading import load_exported_model
    from artifex.generative_models.inference.pipeline import InferencePipeline, load_pipeline

    if kind == "snapshot":
        return load_pipeline("mnist-vae", batch_size=64)
    return InferencePipeline(load_exported_model("mnist-vae")[0], batch_size=64)


def in_stages(kind: str) -> None:
    """Starts up, draws 64 samples and prints the seconds of each stage."""
    times = [time.perf_counter()]
    from artifex.generative_models.inference.cache import enable_compilation_cache

    if kind != "snapshot":
        import artifex.generative_models.core.checkpointing
        import artifex.generative_models.models.vae  # noqa: F401
    from artifex.cli.outputs import open_output
    from artifex.generative_models.core.keys import sample_key

    enable_compilation_cache()
    times.append(time.perf_counter())
    pipeline = opened(kind)
    times.append(time.perf_counter())
    shape = pipeline.executor.spec("generate")[1]["x"].shape
    times.append(time.perf_counter())
    pipeline.executor.warmup(["generate"], [64])
    times.append(time.perf_counter())
    chunks = list(pipeline.generate_chunks(64, key=sample_key(0)))
    times.append(time.perf_counter())
    with open_output("stages.png", (64, *shape), job={}) as output:
        for chunk in chunks:
            output.write(chunk)
    times.append(time.perf_counter())
    seconds = [stop - start for start, stop in pairwise(times)]
    print(json.dumps(dict(zip(STAGES, seconds, strict=True))))


def serve(kind: str) -> None:
    """Loads the model and compiles all that a server runs; prints the seconds after importing JAX."""
    import jax

    jax.numpy.zeros(1).block_until_ready()
    start = time.perf_counter()
    from artifex.generative_models.inference.cache import enable_compilation_cache

    enable_compilation_cache()
    executor = opened(kind).executor
    loaded = time.perf_counter()
    executor.warmup()
    print(json.dumps({"restore": loaded - start, "warmup": time.perf_counter() - loaded}))


def process(command: list[str], cache: Path) -> tuple[float, str]:
    """Seconds and output of a process that keeps its cache in a directory."""
    start = time.perf_counter()
    done = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=cache.parent,
        env={**os.environ, "ARTIFEX_CACHE_DIR": str(cache)},
    )
    return time.perf_counter() - start, done.stdout


def starts(mode: str, rounds: int, folder: Path) -> dict[str, list[dict[str, float]]]:
    """The seconds of the stages of each kind of start, round by round."""
    caches = {"compilation cache": folder / f"{mode}-xla", "snapshot": folder / f"{mode}-snapshot"}
    for kind, cache in caches.items():
        process([PYTHON, __file__, mode, kind], cache)
    found: dict[str, list[dict[str, float]]] = {"first": [], **{kind: [] for kind in caches}}
    for i in range(rounds):
        for kind, times in found.items():
            cache = caches.get(kind, folder / f"{mode}-first-{i}")
            seconds, output = process([PYTHON, __file__, mode, kind], cache)
            times.append({**json.loads(output), "process": seconds})
    return found


def medians(times: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(each[name] for each in times), 4) for name in times[0]}


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commands: dict[str, list[float]] = {name: [] for name in COMMANDS}
        commands |= {"generate, first": [], "generate, second": []}
        process(GENERATE, folder / "warm")
        for i in range(ROUNDS):
            for name, command in COMMANDS.items():
                commands[name].append(process(command, folder / "warm")[0])
            commands["generate, first"].append(process(GENERATE, folder / f"cold-{i}")[0])
            commands["generate, second"].append(process(GENERATE, folder / "warm")[0])
        stages = {kind: medians(times) for kind, times in starts("stages", ROUNDS, folder).items()}
        servers = {kind: medians(times) for kind, times in starts("serve", SERVER_ROUNDS, folder).items()}
    ratios = [
        a / b for a, b in zip(commands["generate, second"], commands["jax.numpy.zeros(1)"], strict=True)
    ]
    facts: dict[str, object] = {
        "seconds": {name: round(statistics.median(times), 4) for name, times in commands.items()},
        "second_generate_over_jax": round(statistics.median(ratios), 3),
        "stages": stages,
        "server": servers,
    }
    rows: list[list[object]] = [
        [name, f"{statistics.median(times):.3f} s"] for name, times in commands.items()
    ]
    rows.append(["generate, second, over jax.numpy.zeros(1)", f"{statistics.median(ratios):.2f} x"])
    for kind, times in stages.items():
        rows += [[f"{kind}: {stage}", f"{seconds:.3f} s"] for stage, seconds in times.items()]
    for kind, times in servers.items():
        rows += [[f"server, {kind}: {stage}", f"{seconds:.3f} s"] for stage, seconds in times.items()]
    for kind in ("compilation cache", "snapshot"):
        gains = {
            "process": stages["first"]["process"] / stages[kind]["process"],
            "after_imports": after_imports(stages["first"]) / after_imports(stages[kind]),
            "warmup": servers["first"]["warmup"] / servers[kind]["warmup"],
        }
        facts[f"first_over_{kind.replace(' ', '_')}"] = {name: round(gain, 2) for name, gain in gains.items()}
        rows += [[f"first over {kind}: {name}", f"{gain:.2f} x"] for name, gain in gains.items()]
    from common import report  # it imports JAX, which the stages are to do themselves

    report("cold_start", ["what", "median"], rows, facts)


def after_imports(times: dict[str, float]) -> float:
    return sum(times[stage] for stage in STAGES[1:])


if __name__ == "__main__":
    if sys.argv[1:]:
        {"stages": in_stages, "serve": serve}[sys.argv[1]](sys.argv[2])
    else:
        main()
