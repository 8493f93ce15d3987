"""What importing costs: `import artifex` and `artifex --help`, beside the bare interpreter."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from common import report

RUNS = 15
COMMANDS = {
    "interpreter": [sys.executable, "-c", "pass"],
    "import artifex": [sys.executable, "-c", "import artifex"],
    "artifex --help": [str(Path(sys.executable).with_name("artifex")), "--help"],
    "import jax": [sys.executable, "-c", "import jax"],
}


def main() -> None:
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(RUNS):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times[name].append(1e3 * (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in times.items()}
    over = {
        name: statistics.median(v - i for v, i in zip(values, times["interpreter"], strict=True))
        for name, values in times.items()
    }
    rows = [[name, f"{medians[name]:.0f} ms", f"{over[name]:.0f} ms"] for name in COMMANDS]
    facts = {
        name: {"milliseconds": round(medians[name], 1), "over_interpreter": round(over[name], 1)}
        for name in COMMANDS
    }
    report("start_up", ["command", "median", "over the interpreter"], rows, facts)


if __name__ == "__main__":
    main()
