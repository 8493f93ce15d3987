"""What each way to use more devices costs and brings, on real digits; both sides of a ratio in turns.

A mesh of virtual devices on this machine's cores cannot be faster than one device that uses them all: what
it shows is what sharding costs. Two processes that have a core each, against one that has one, show what
`jax.distributed` brings; and actors on Ray what Ray does (`ray_jobs.py`).
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
from pathlib import Path

import ray_jobs
from common import Facts, Row, report

ROWS = 30_720
ROUNDS = 5
MESHES = (1, 2, 4, 8)
BATCH = 64  # rows on each device, as `parallel_batch_inference` has them

ON_A_MESH = """
import json, sys
import jax, numpy as np
sys.path.insert(0, sys.argv[1])
from common import digits, in_turns
from artifex.generative_models.core import DeviceManager
from artifex.generative_models.inference import Executor, load_exported_model

rows, rounds, batch, sizes = json.loads(sys.argv[2])
model, images, key = load_exported_model("mnist-vae")[0], digits(rows), jax.random.key(0)
executors = {"one device": Executor(model, batch_sizes=(batch,), tuned=False)}
for size in sizes:
    mesh = DeviceManager().mesh(size)
    executors[f"mesh of {size}"] = Executor(model, mesh=mesh, batch_sizes=(batch * size,), tuned=False)

def encode(executor):
    (size,) = executor.batch_sizes
    chunks = ({"x": images[i : i + size]} for i in range(0, rows, size))
    return np.concatenate([chunk["mean"] for chunk in executor.map("encode", chunks)])

def generate(executor):
    (size,) = executor.batch_sizes
    counts = (min(size, rows - i) for i in range(0, rows, size))
    last = None
    for chunk in executor.map("generate", counts, key=key):
        last = chunk["x"][-1]
    return last

times = {}
for endpoint in (encode, generate):
    calls = {name: (lambda executor=executor: endpoint(executor)) for name, executor in executors.items()}
    expected = calls["one device"]()
    for call in calls.values():
        np.testing.assert_allclose(call(), expected, rtol=1e-4, atol=1e-5)
    times[endpoint.__name__] = in_turns(calls, rounds)
print(json.dumps(times))
"""

A_PROCESS = """
import json, os, sys
os.sched_setaffinity(0, {int(sys.argv[4])})  # before JAX counts the cores
import jax, numpy as np
sys.path.insert(0, sys.argv[1])
from common import digits, seconds
rows, address, number = *json.loads(sys.argv[2]), int(sys.argv[3])
if address:
    from artifex.generative_models.core.processes import join_processes
    join_processes(address, 2, number)
from artifex.generative_models.core import DeviceManager
from artifex.generative_models.core.processes import all_of
from artifex.generative_models.inference import Executor, load_exported_model

mesh = DeviceManager().mesh() if address else None
executor = Executor(load_exported_model("mnist-vae")[0], mesh=mesh, batch_sizes=(64,), tuned=False)
own = executor.local_rows("encode", rows)
images, key = digits(rows)[own.start : own.stop], jax.random.key(0)

def encode():
    for _ in executor.map("encode", ({"x": images[i : i + 4096]} for i in range(0, len(own), 4096))):
        pass

def generate():
    counts = (min(4096, len(own) - i) for i in range(0, len(own), 4096))
    for _ in executor.map("generate", counts, key=key, first_row=own.start):
        pass

jobs = {"encode": encode, "generate": generate}
for job in jobs.values():
    job()
print("= ready", file=sys.stderr, flush=True)
for line in sys.stdin:
    all_of(None)  # so that both begin together
    print("=", seconds(jobs[line.strip()]), file=sys.stderr, flush=True)
"""


def meshes() -> tuple[list[Row], Facts]:
    """Equal work on one device and on meshes."""
    given = json.dumps([ROWS, ROUNDS, BATCH, MESHES])
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={max(MESHES)}"}
    command = [sys.executable, "-c", ON_A_MESH, str(Path(__file__).parent), given]
    said = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    rows: list[Row] = []
    facts: Facts = {}
    for endpoint, times in json.loads(said.splitlines()[-1]).items():
        for name, seconds in times.items():
            pairs = zip(seconds, times["one device"], strict=True)
            overhead = statistics.median(ours / one for ours, one in pairs) - 1
            bar = "" if name == "one device" else "at most 10%"
            rows.append(
                [f"{endpoint}: {name}", f"{ROWS / statistics.median(seconds):,.0f}", f"{overhead:+.0%}", bar]
            )
            facts[f"{endpoint}, {name}, overhead"] = round(overhead, 3)
    return rows, facts


class Process:
    """A process that has one core, and runs a job when told to."""

    def __init__(self, address: str, number: int):
        command = [sys.executable, "-c", A_PROCESS, str(Path(__file__).parent)]
        core = sorted(os.sched_getaffinity(0))[number]
        self._process = subprocess.Popen(
            [*command, json.dumps([ROWS, address]), str(number), str(core)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,  # Gloo talks there
            stderr=subprocess.PIPE,
            text=True,
        )

    def start(self, job: str) -> None:
        """Tells it to run a job."""
        assert self._process.stdin is not None
        print(job, file=self._process.stdin, flush=True)

    def read(self) -> str:
        """What it says next; libraries speak on the same stream."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if line.startswith("= "):
                return line[2:].strip()
        raise SystemExit("a process ended too soon")

    def end(self) -> None:
        """Lets it end; processes of one job wait for each other, so all are told before any is waited for."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def wait(self) -> None:
        """Waits until it has ended."""
        self._process.wait()


def processes() -> tuple[list[Row], Facts]:
    """One process on one core, and two on a core each under `jax.distributed`."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    alone, pair = [Process("", 0)], [Process(address, i) for i in range(2)]
    for process in (*alone, *pair):
        assert process.read() == "ready"
    rows: list[Row] = []
    facts: Facts = {}
    for job in ("encode", "generate"):
        times: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(ROUNDS):
            for group in (alone, pair):
                for process in group:
                    process.start(job)
                times[len(group)].append(max(float(process.read()) for process in group))
        gain = statistics.median(one / two for one, two in zip(times[1], times[2], strict=True))
        rates = {count: f"{ROWS / statistics.median(seconds):,.0f}" for count, seconds in times.items()}
        rows.append([f"{job}: 1 process on 1 core", rates[1], "1.00 x", ""])
        rows.append([f"{job}: 2 processes on a core each", rates[2], f"{gain:.2f} x", "at least 1.8 x"])
        facts[f"{job}, two processes over one"] = round(gain, 3)
    for process in (*alone, *pair):
        process.end()
    for process in (*alone, *pair):
        process.wait()
    return rows, facts


def main() -> None:
    rows: list[Row] = []
    facts: Facts = {}
    for part in (meshes, processes, ray_jobs.measure):
        more_rows, more_facts = part()
        rows += more_rows
        facts |= more_facts
    report("scaling", ["scaling", "rows/s", "compared", "bar"], rows, facts)


if __name__ == "__main__":
    main()
