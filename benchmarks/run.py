"""Runs every benchmark and keeps its result: one JSON line a benchmark, in a file named after the device."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BENCHMARKS = ("start_up", "overhead", "batch_sizes", "offline", "memory", "concurrency")


def main() -> None:
    results = []
    for name in sys.argv[1:] or BENCHMARKS:
        command = [sys.executable, str(HERE / f"{name}.py")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                last = line
        if process.returncode:
            raise SystemExit(f"{name} failed")
        results.append(json.loads(last))
    machine = results[0]["machine"]
    device = re.sub(
        r"[^a-z0-9]+", "-", f"{machine['device']} {machine['cpu']} {machine['cores']} cores".lower()
    )
    path = HERE / "results" / f"{device}.jsonl"
    kept = {}
    if path.exists():
        kept = {entry["benchmark"]: entry for entry in map(json.loads, path.read_text().splitlines())}
    kept |= {entry["benchmark"]: entry for entry in results}
    path.write_text("".join(json.dumps(entry) + "\n" for entry in kept.values()))


if __name__ == "__main__":
    main()
