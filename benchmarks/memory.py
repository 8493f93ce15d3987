"""Resident memory while 1,000,000 memory-mapped pictures are encoded, and as many drawn, to files."""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from common import digits, report
from flax import nnx

import artifex
from artifex.generative_models.inference import batch_encode_images, batch_generate_samples

ROWS = 1_000_000
BLOCK = 10_000


def peak_megabytes() -> float:
    """Most that was ever resident, pages of files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def create(path: Path, dtype, shape) -> np.memmap:
    return np.lib.format.open_memmap(path, "w+", dtype, shape)


def write_pictures(path: Path, dtype, scale: float) -> None:
    """Real digits, over and over; plain writes, so that no page of the file is this process's."""
    block = (digits(BLOCK) * scale).astype(dtype)
    with path.open("wb") as file:
        header = {
            "descr": np.lib.format.dtype_to_descr(block.dtype),
            "fortran_order": False,
            "shape": (ROWS, 28, 28, 1),
        }
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range(ROWS // BLOCK):
            file.write(block.tobytes())


def main() -> None:
    pipeline = artifex.load("mnist-vae")
    model = pipeline.model
    rows, facts = [], {}

    def measure(label, job):
        before = peak_megabytes()
        start = time.perf_counter()
        job()
        seconds = time.perf_counter() - start
        grown = peak_megabytes() - before
        rows.append([label, f"{ROWS / seconds:,.0f}", f"{grown:.0f} MB"])
        facts[label] = {"grown_megabytes": round(grown, 1), "rows_per_second": round(ROWS / seconds)}

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_pictures(place / "floats.npy", np.float32, 1.0)
        write_pictures(place / "bytes.npy", np.uint8, 255.0)
        warm = np.zeros((64, 28, 28, 1), np.float32)
        batch_encode_images(model, warm)
        pipeline.encode(warm)
        batch_generate_samples(model, 64, rngs=nnx.Rngs(0))

        floats = np.load(place / "floats.npy", mmap_mode="r")
        latents = create(place / "latents.npy", np.float32, (ROWS, 32))
        measure("encode float32, 3.1 GB", lambda: batch_encode_images(model, floats, out=latents))
        pictures = np.load(place / "bytes.npy", mmap_mode="r")
        measure("encode uint8, 0.8 GB", lambda: pipeline.encode(pictures, out=latents))
        samples = create(place / "samples.npy", np.uint8, (ROWS, 28, 28, 1))
        measure("generate uint8, 0.8 GB", lambda: pipeline.generate(ROWS, rngs=nnx.Rngs(0), out=samples))
    report("memory", ["1,000,000 rows, file to file", "rows/s", "resident memory grew by"], rows, facts)


if __name__ == "__main__":
    main()
