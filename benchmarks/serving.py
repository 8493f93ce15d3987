"""`artifex serve` beside other servers of the same model, and by itself: latency, starts, reloads under load.

Each server runs in an environment of its own, alone on the machine while it is measured, with the model
compiled for its batch sizes and its own batching on; `servers/contender_*.py` has how. `wrk` asks it from
another process, one image a request. Contenders without an environment are left out:
`python benchmarks/servers/contenders.py DIR` makes them, and `ARTIFEX_BENCHMARK_SERVERS=DIR` names them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "servers"))

from common import Facts, Row, report
from compare import compare
from contenders import CONTENDERS, ENVIRONMENTS, OURS, free_ports, python_of, running
from load import Load, load

ROUNDS = 3
SECONDS = 5.0
WINDOW_SECONDS = 10.0
BARS = {  # ratio of rates at 64 connections: ours over a contender's protocol
    ("v2-json / litserve json", "encode"): 12,
    ("v2-json / triton v2-json", "encode"): 2.4,
    ("v2-binary / triton v2-binary", "encode"): 3.2,
    ("v2-json / triton v2-json", "generate"): 2.2,
    ("v2-binary / triton v2-binary", "generate"): 2.3,
}


def beside_others(environments: Path) -> tuple[list[Row], Facts]:
    names = [name for name, it in CONTENDERS.items() if python_of(it, environments).exists()]
    found = compare(names, seconds=SECONDS, rounds=ROUNDS, environments=environments)
    rows: list[Row] = []
    for name, protocols in found["results"].items():
        for protocol, endpoints in protocols.items():
            for endpoint, by_count in endpoints.items():
                rows.append(_rates(f"{name} {protocol}: {endpoint}, 64 connections", by_count["64"]))
    for pair, endpoints in found["ratios"].items():
        for endpoint, by_count in endpoints.items():
            bar = str(BARS.get((pair, endpoint), ""))
            rows.append([f"{pair}: {endpoint}", f"{by_count['64']:.2f} x", bar, ""])
    return rows, found


def alone(environments: Path) -> tuple[list[Row], Facts]:
    found = compare([OURS], seconds=SECONDS, rounds=1, connections=(1, 256), environments=environments)
    rows: list[Row] = []
    for protocol, endpoints in found["results"][OURS].items():
        for endpoint, by_count in endpoints.items():
            one, many = by_count["1"], by_count["256"]
            bar = f"{0.7 if endpoint == 'encode' else 1.0} ms, p99 3 ms"
            rows.append(_latency(f"{protocol}: {endpoint}, 1 connection", one[0], bar))
            rows.append(_rates(f"{protocol}: {endpoint}, 256 connections", many, bar="0 errors"))
    return rows, found["results"]


def _rates(name: str, rounds: list[dict[str, float]], bar: str = "") -> Row:
    rate = statistics.median(r["requests_per_second"] for r in rounds)
    p50, p99 = (statistics.median(r[key] for r in rounds) for key in ("p50_ms", "p99_ms"))
    errors = sum(r["errors"] for r in rounds)
    return [
        name,
        f"{rate:,.0f}/s",
        bar,
        f"p50 {p50:.1f}, p99 {p99:.1f} ms ({p99 / p50:.1f} x), {errors:.0f} errors",
    ]


def _latency(name: str, result: dict[str, float], bar: str) -> Row:
    return [
        name,
        f"{result['p50_ms']:.2f} ms",
        bar,
        f"p99 {result['p99_ms']:.2f} ms, {result['errors']} errors",
    ]


def starts() -> tuple[list[Row], Facts]:
    """Seconds from the command to ready, with an empty cache and with what that start left, and memory."""
    seconds: list[float] = []
    memory = 0.0
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(4):
            port, grpc_port = free_ports()
            command = [sys.executable, "-m", "artifex", "serve", "mnist-vae"]
            start = time.perf_counter()
            process = subprocess.Popen(
                [*command, "--port", str(port), "--grpc-port", str(grpc_port)],
                env={**os.environ, "ARTIFEX_CACHE_DIR": cache},
                stderr=subprocess.PIPE,
                text=True,
            )
            assert process.stderr is not None
            for line in process.stderr:
                if json.loads(line)["event"] == "ready":
                    break
            seconds.append(time.perf_counter() - start)
            memory = resident_megabytes(process.pid)
            process.terminate()
            process.communicate()
    first, later = seconds[0], statistics.median(seconds[1:])
    facts: Facts = {"first_seconds": seconds[0], "later_seconds": seconds[1:], "resident_megabytes": memory}
    return [
        ["start to ready, warm cache", f"{later:.2f} s", "3.5 s", f"resident {memory:.0f} MB (bar 400)"],
        ["first start over a later one", f"{first / later:.1f} x", "3", f"first start {first:.1f} s"],
    ], facts


def resident_megabytes(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1e3


def reloads(seconds: float) -> tuple[list[Row], Facts]:
    """Saturation in windows of ten seconds; in every second one an export with other weights takes over."""
    from artifex.generative_models.inference import export_model, load_exported_model

    model, _, metadata = load_exported_model("mnist-vae")
    pairs = max(1, round(seconds / WINDOW_SECONDS / 2))
    calm: list[Load] = []
    reloaded: list[Load] = []
    memory: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch, "served")
        facts = {"training_steps": 1, "final_loss": 0.0, "image_range": metadata["image_range"]}
        export_model(model, target, step=0, **facts)
        for number in range(pairs):
            model.encoder.head.bias[...] += 0.01
            export_model(model, Path(scratch, f"next{number}"), step=number + 1, **facts)
        contender = CONTENDERS[OURS]
        command = [f"mnist-vae={target}" if part == "mnist-vae" else part for part in contender.command]
        served = dataclasses.replace(contender, command=tuple(command))
        with running(served) as server:
            url, requests = server.endpoint_url("encode"), contender.requests("v2-binary", "encode")
            load(url, requests, 64, WINDOW_SECONDS)
            for number in range(pairs):
                calm.append(load(url, requests, 64, WINDOW_SECONDS))
                memory.append(resident_megabytes(server.pid))
                reloader = subprocess.Popen(
                    [sys.executable, __file__, "--reload", server.url(""), str(number), scratch]
                )
                reloaded.append(load(url, requests, 64, WINDOW_SECONDS))
                if reloader.wait(60):
                    raise RuntimeError("a reload failed")
    p99 = [statistics.median(window.p99_ms for window in windows) for windows in (calm, reloaded)]
    errors = sum(window.errors for window in (*calm, *reloaded))
    grown = memory[-1] - memory[len(memory) // 3]
    minutes = 2 * pairs * WINDOW_SECONDS / 60
    return [
        [
            f"{minutes:.1f} minutes at saturation, {pairs} reloads: failed requests",
            str(errors),
            "0",
            f"memory {memory[0]:.0f} to {memory[-1]:.0f} MB, {grown:+.0f} in its last two thirds",
        ],
        [
            "p99 in windows with a reload",
            f"{p99[1] / p99[0]:.2f} x",
            "2",
            f"{p99[1]:.1f} over {p99[0]:.1f} ms",
        ],
    ], {
        "calm": [window._asdict() for window in calm],
        "reloaded": [window._asdict() for window in reloaded],
        "resident_megabytes": memory,
    }


def reload(url: str, number: str, scratch: str) -> None:
    """Puts an export in place and has the server load it, two seconds into a window."""
    time.sleep(2)
    target = Path(scratch, "served")
    target.rename(Path(scratch, f"old{number}"))
    Path(scratch, f"next{number}").rename(target)
    request = urllib.request.Request(f"{url}/v2/repository/models/mnist-vae/load", b"{}")
    urllib.request.urlopen(request, timeout=50).close()
    shutil.rmtree(Path(scratch, f"old{number}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300.0, help="length of the load with reloads")
    parser.add_argument("--reload", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.reload:
        reload(*arguments.reload)
        return
    environments = Path(os.environ.get("ARTIFEX_BENCHMARK_SERVERS", ENVIRONMENTS)).resolve()
    rows: list[Row] = []
    facts: Facts = {}
    for name, measured in (
        ("starts", starts),
        ("alone", lambda: alone(environments)),
        ("beside_others", lambda: beside_others(environments)),
        ("reloads", lambda: reloads(arguments.seconds)),
    ):
        more, facts[name] = measured()
        rows += more
    report("serving", ["serving", "measured", "bar", ""], rows, facts)


if __name__ == "__main__":
    main()
