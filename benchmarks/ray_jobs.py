"""Jobs on Ray: 200,000 real digits encoded by actors, beside a plain loop over the executor; and one killed.

All times are after start-up, which is told by itself: a job begins when its first shard does.
"""

from __future__ import annotations

import os
import signal
import statistics
import tempfile
import threading
import time
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from common import Facts, Row

from artifex.generative_models.inference.offline.npy import NpyWriter
from artifex.generative_models.inference.pipeline import InferencePipeline, load_pipeline
from artifex.ray import encode_dataset
from artifex.ray.cluster import joined

ROWS = 200_000
MORE_ROWS = 400_000  # so that it matters little which of two actors is ready first
ROUNDS = 3
MODEL = "mnist-vae"


def write_digits(path: Path, rows: int) -> Path:
    """The digits that ship, over and over, uint8, as an array on disk."""
    with np.load(str(resources.files("artifex") / "zoo" / "mnist_digits.npz")) as archive:
        np.save(path, np.resize(archive["images"], (rows, 28, 28, 1)))
    return path


def loop(pipeline: InferencePipeline, images: Path, output: Path) -> float:
    """Rows a second of the executor in this process, from disk to disk as a job does."""
    rows = np.load(images, mmap_mode="r")
    start = time.perf_counter()
    latent = pipeline.executor.spec("encode")[1]["mean"]
    with NpyWriter(output, (len(rows), *latent.shape), latent.dtype, job={}) as writer:
        for chunk in pipeline.encode_chunks(rows):
            writer.write(chunk)
    return len(rows) / (time.perf_counter() - start)


def job(images: Path, output: Path, num_actors: int, num_cpus: float) -> dict[str, Any]:
    return encode_dataset(MODEL, images, output, num_actors=num_actors, num_cpus=num_cpus)


def one_actor(folder: Path, images: Path) -> tuple[list[Row], Facts]:
    """One actor on all cores against the loop, in turns."""
    cores = len(os.sched_getaffinity(0))
    pipeline = load_pipeline(MODEL)
    loop(pipeline, images, folder / "loop.npy")  # compiles
    loops, jobs, starts = [], [], []
    for _ in range(ROUNDS):
        loops.append(loop(pipeline, images, folder / "loop.npy"))
        facts = job(images, folder / "ray.npy", 1, cores)
        jobs.append(facts["rows_per_second"])
        starts.append(facts["start_seconds"])
    equal = (folder / "ray.npy").read_bytes() == (folder / "loop.npy").read_bytes()
    ratio = statistics.median(ours / theirs for ours, theirs in zip(jobs, loops, strict=True))
    rows: list[Row] = [
        [
            f"Ray, {ROWS:,} digits from disk to disk: the loop",
            f"{statistics.median(loops):,.0f}",
            "1.00 x",
            "",
        ],
        [
            f"Ray: 1 actor on {cores} cores",
            f"{statistics.median(jobs):,.0f}",
            f"{ratio:.2f} x",
            "at least 0.85 x",
        ],
        ["Ray: seconds until the first shard begins", f"{statistics.median(starts):.1f} s", "", ""],
    ]
    facts = {"loop": loops, "one_actor": jobs, "one_actor_over_loop": ratio, "equal": equal, "start": starts}
    return rows, facts


def two_actors(folder: Path, images: Path) -> tuple[list[Row], Facts]:
    """Two actors of a core each against one of one core, in turns, on more rows."""
    images = write_digits(folder / "more.npy", MORE_ROWS)
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(ROUNDS):
        for num_actors, found in rates.items():
            found.append(job(images, folder / "ray.npy", num_actors, 1.0)["rows_per_second"])
    ratio = statistics.median(two / one for one, two in zip(rates[1], rates[2], strict=True))
    rows: list[Row] = [
        [
            f"Ray, {MORE_ROWS:,} digits: 1 actor on 1 core",
            f"{statistics.median(rates[1]):,.0f}",
            "1.00 x",
            "",
        ],
        [
            "Ray: 2 actors on a core each",
            f"{statistics.median(rates[2]):,.0f}",
            f"{ratio:.2f} x",
            "at least 1.7 x",
        ],
    ]
    return rows, {"one_core": rates[1], "two_cores": rates[2], "two_over_one": ratio}


def killed(folder: Path, images: Path) -> tuple[list[Row], Facts]:
    """One of two actors gets SIGKILL in the middle; the output must be that of the undisturbed loop."""
    half = threading.Event()
    wrote = NpyWriter.wrote

    def noting(self: NpyWriter, start: int, stop: int) -> None:
        wrote(self, start, stop)
        if not half.is_set() and self.rows_done >= ROWS // 4:
            half.set()
            os.kill(_an_actor(), signal.SIGKILL)

    NpyWriter.wrote = noting
    try:
        facts = job(images, folder / "killed.npy", 2, 1.0)
    finally:
        NpyWriter.wrote = wrote
    equal = (folder / "killed.npy").read_bytes() == (folder / "loop.npy").read_bytes()
    told = "complete, equal" if half.is_set() and equal else "not equal"
    rows: list[Row] = [
        ["Ray: 2 actors, one killed", f"{facts['rows_per_second']:,.0f}", told, "complete, equal"]
    ]
    return rows, {"killed_equal": equal, "killed_rows_per_second": facts["rows_per_second"]}


def _an_actor() -> int:
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and (process / "cmdline").read_bytes().startswith(b"ray::MapWorker"):
            return int(process.name)
    raise RuntimeError("no actor runs")


def measure() -> tuple[list[Row], Facts]:
    """All of it, on a Ray of this machine."""
    # Other programs that run beside them should slow actors as they slow the loop; Ray has them step back.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - it is Ray's
    with tempfile.TemporaryDirectory() as name, joined("local"):
        folder = Path(name)
        images = write_digits(folder / "digits.npy", ROWS)
        parts = [part(folder, images) for part in (one_actor, two_actors, killed)]
    rows = [row for part, _ in parts for row in part]
    facts: Facts = {}
    for _, more in parts:
        facts |= more
    return rows, facts
