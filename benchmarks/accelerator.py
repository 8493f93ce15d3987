"""What can be found out about an accelerator in minutes: that it is right, and how fast it is.

    PYTHONPATH=src python benchmarks/accelerator.py --seconds 300 --output accelerator.json

It needs Python with JAX, Flax, Orbax, NumPy, Pillow, typer and rich, no installation of Artifex, and nothing
to download. Each finding is in the JSON file as soon as it is there, so that a run that is cut off keeps it.
What fails is recorded with its error and the rest goes on; the exit status is then 1. A part for which there
is no time left is skipped, and so is the rest of one that takes too long.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from common import Row, machine, report
from parts import allocator, laws, loops, speed, storage
from parts.bench import ACCELERATOR, CPU, QUICK, Bench, Finding, NotApplicableError, Step, on_cpu

from artifex.generative_models.core import DeviceManager
from artifex.generative_models.inference import enable_compilation_cache


@dataclass(frozen=True)
class Part:
    """One thing to find out.

    Args:
        name: Its name in the results.
        steps: Finds it out, step by step.
        seconds: About what a step takes on an accelerator; the parts before it leave it so much time.
    """

    name: str
    steps: Callable[[Bench], Iterator[Step]]
    seconds: float


@dataclass
class Record:
    """The results so far, of which the file always holds all.

    Args:
        path: The file.
        about: What else it says.
    """

    path: Path
    about: dict[str, object]
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def begin(self, part: str) -> None:
        """Says that a part runs, for those who find a file that was cut off."""
        self.parts[part] = {"status": "running", "found": {}}
        self.write()

    def add(self, part: str, what: str, finding: Finding) -> None:
        """Keeps what a step found."""
        self.parts[part]["found"][what] = finding.facts
        self.say(part, what, finding.says)

    def end(self, part: str, status: str, reason: str = "", **facts: object) -> None:
        """Says how a part ended, and why where not all is well."""
        facts = {"reason": reason, **facts} if reason else facts
        self.parts[part] = {**self.parts.get(part, {}), "status": status, **facts}
        if status != "ok":
            self.say(part, status, reason)
        self.write()

    def say(self, *cells: str) -> None:
        """Prints a row of the table now, and keeps it for the end."""
        self.rows.append(list(cells))
        print(" | ".join(cells), flush=True)
        self.write()

    @property
    def facts(self) -> dict[str, object]:
        """All that is known."""
        return {**self.about, "parts": self.parts}

    def write(self) -> None:
        """Puts the whole file in place at once, so that nobody ever sees half of it."""
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_text(json.dumps(self.facts, indent=1) + "\n")
        temporary.replace(self.path)


def facts(bench: Bench) -> Iterator[Step]:
    """What the results belong to."""
    yield Step("machine", machine_facts)


def machine_facts() -> Finding:
    device = jax.devices()[0]
    memory = DeviceManager().memory()[0]
    found = {
        **machine(),
        "orbax-checkpoint": version("orbax-checkpoint"),
        "platform": device.platform,
        "platform_version": device.client.platform_version,
        "devices": len(jax.devices()),
        "bytes_limit": memory.bytes_limit,
        "bytes_in_use": memory.bytes_in_use,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {name: value for name, value in os.environ.items() if name.startswith(("XLA_", "JAX_"))},
    }
    return Finding(found, f"{len(jax.devices())} x {device.device_kind}, JAX {jax.__version__}")


PARTS = (
    Part("facts", facts, 1),
    Part("rows are independent", laws.rows_are_independent, 15),
    Part("rows of loops are independent", loops.rows_of_loops_are_independent, 12),
    Part("one seed", laws.one_seed_everywhere, 8),
    Part("arrays of the device", laws.arrays_of_the_device, 4),
    Part("swap of weights", laws.swap_of_weights, 4),
    Part("mesh of all devices", laws.mesh_of_all_devices, 4),
    Part("save and load", storage.save_and_load, 8),
    Part("out of memory", allocator.halving, 8),
    Part("latency of one row", speed.latency, 5),
    Part("loops", loops.loops_beside_others, 25),
    Part("rows a second", speed.rates, 15),
    Part("executions in flight", speed.in_flight, 10),
    Part("shares of the ceilings", speed.shares, 8),
)


def run_part(part: Part, bench: Bench, record: Record, end: float) -> None:
    """Records what a part finds until a moment of `time.monotonic`; its failure is a finding as well."""
    start = time.monotonic()
    record.begin(part.name)
    broken: list[str] = []
    status, reason = "ok", ""
    try:
        if not run_steps(part, bench, record, broken, end):
            status, reason = "cut short", "no time for what is left of it"
    except NotApplicableError as error:
        status, reason = "not applicable", str(error)
    except Exception as error:  # whatever it is, the other parts are still worth their time
        broken.append(f"{type(error).__name__}: {error}")
        traceback.print_exc()
    if broken:
        status, reason = "failed", "; ".join(filter(None, [*broken, reason]))
    record.end(part.name, status, reason, seconds=round(time.monotonic() - start, 1))


def run_steps(part: Part, bench: Bench, record: Record, broken: list[str], end: float) -> bool:
    """Records what a part finds and collects what is broken; tells whether there was time for all of it."""
    longest, begun = part.seconds, time.monotonic()
    for what, find in part.steps(bench):
        if time.monotonic() + longest > end and record.parts[part.name]["found"]:
            return False
        try:
            finding = find()
        except Exception as error:  # whatever it is, the next step may do
            trace = traceback.format_exc()
            finding = Finding({"error": trace}, "failed", [f"{type(error).__name__}: {error}"])
        record.add(part.name, what, finding)
        broken += [f"{what}: {one}" for one in finding.broken]
        now = time.monotonic()
        longest, begun = max(longest, now - begun), now
    return True


def run_parts(parts: Sequence[Part], bench: Bench, record: Record, seconds: float) -> bool:
    """Runs parts in order within so many seconds; tells whether none failed."""
    end = time.monotonic() + seconds
    for i, part in enumerate(parts):
        reserved = sum(later.seconds for later in parts[i + 1 :])
        if time.monotonic() + part.seconds > end:
            record.end(part.name, "skipped", f"less than {part.seconds:g} s were left")
        else:
            run_part(part, bench, record, end - reserved)
    return all(result["status"] != "failed" for result in record.parts.values())


def arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=300, help="time for all parts together")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(os.environ.get("OUT", "."), "accelerator.json"),
        help="the JSON file; else $OUT/accelerator.json, or here",
    )
    parser.add_argument("--quick", action="store_true", help="the smallest sizes: whether the script runs")
    return parser.parse_args(words)


def main(words: Sequence[str], parts: Sequence[Part] = PARTS) -> int:
    """Returns the exit status."""
    options = arguments(words)
    sizes = CPU if on_cpu() else ACCELERATOR
    bench = Bench(QUICK if options.quick else sizes)
    record = Record(options.output, {"seconds": options.seconds, "quick": options.quick})
    gc.collect()
    gc.freeze()  # what is imported need not be searched for garbage before each call that is timed
    with tempfile.TemporaryDirectory() as cache:
        os.environ["ARTIFEX_CACHE_DIR"] = cache  # apart from what was tuned or compiled here before
        enable_compilation_cache()  # several parts want the same executables
        fine = run_parts(parts, bench, record, options.seconds)
    report("accelerator", ["part", "what", "found"], record.rows, record.facts, "left")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
