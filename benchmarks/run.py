"""Runs every benchmark and keeps the results: a JSON file for each device, and RESULTS.md with their tables.

Benchmarks named on the command line are run alone; the results of the others stay.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results"
BENCHMARKS = (
    "cold_start",
    "overhead",
    "batch_sizes",
    "kernels",
    "tuning",
    "offline",
    "memory",
    "loading",
    "concurrency",
    "slots",
    "watchers",
    "scaling",
    "families",
    "draws",
    "quality",
    "zoo",
    "evaluate",
)


def run(name: str) -> dict[str, dict[str, object]]:
    """The JSON lines of a benchmark, by what they call themselves: its name, and perhaps a part after it."""
    found = {}
    command = [sys.executable, str(HERE / f"{name}.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.startswith('{"benchmark"'):
                entry = json.loads(line)
                found[entry["benchmark"]] = entry
    if process.returncode:
        raise SystemExit(f"{name} failed")
    return found


def device_of(machine: dict[str, object]) -> str:
    return f"{machine['device']} {machine['cpu']} {machine['cores']} cores"


def table(rows: list[list[str]]) -> str:
    head, *body = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    rule = " | ".join(["---", *["---:"] * (len(rows[0]) - 1)])
    return "\n".join(f"| {line} |" for line in (head, rule, *body))


def section(results: dict[str, dict[str, object]]) -> str:
    parts = [f"## {device_of(next(iter(results.values()))['machine'])}"]
    for name, entry in results.items():
        versions = {k: v for k, v in entry["machine"].items() if k not in ("device", "cpu", "cores")}
        line = ", ".join(f"{package} {number}" for package, number in versions.items())
        parts += [
            f"### {name}",
            f"`python benchmarks/{name.partition(':')[0]}.py` on {line}",
            table(entry["table"]),
        ]
    return "\n\n".join(parts)


def main() -> None:
    fresh = {key: entry for name in sys.argv[1:] or BENCHMARKS for key, entry in run(name).items()}
    device = device_of(next(iter(fresh.values()))["machine"])
    path = RESULTS / f"{re.sub(r'[^a-z0-9]+', '-', device.lower())}.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(kept | fresh, indent=1) + "\n")
    sections = [section(json.loads(file.read_text())) for file in sorted(RESULTS.glob("*.json"))]
    text = "\n\n".join(["# Results", "What `make bench` measured, ratios within one run.", *sections])
    (RESULTS / "RESULTS.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
