"""Tuning beside an exhaustive search: how long each takes, and how fast what each finds runs.

Each is run on the bundled model, and tuning twice; what they chose is then measured in turns.
"""

from __future__ import annotations

from common import in_turns, ratio, report

from artifex.generative_models.core.keys import sample_key
from artifex.generative_models.inference import Executor, load_exported_model
from artifex.generative_models.inference.measure.throughput import random_rows
from artifex.generative_models.inference.tuning.optimize import tune

ENDPOINTS = ("encode", "generate")
ROWS = 16_384
ROUNDS = 15


def described(candidate) -> str:
    fusion = ", fusion" if candidate.setting.fusion else ""
    return f"{candidate.batch_size} rows{fusion}, {candidate.executions_in_flight} in flight"


def runner(model, endpoint, found):
    executor = Executor(model, batch_sizes=(found.tuned.batch_size,), tuned={endpoint: found.tuned})
    inputs = random_rows(executor.spec(endpoint)[0], ROWS)
    return lambda: executor(endpoint, inputs, key=sample_key(0), num_rows=ROWS)


def main() -> None:
    model, _, _ = load_exported_model("mnist-vae")
    facts, rows = {}, []
    for endpoint in ENDPOINTS:
        ways = {
            "tune": {},
            "tune, again": {},
            "exhaustive search": {"exhaustive": True},
        }
        found = {label: tune(model, endpoint, store=False, **arguments) for label, arguments in ways.items()}
        calls = {label: runner(model, endpoint, report) for label, report in found.items()}
        for call in calls.values():
            call()  # compiles
        times = in_turns(calls, ROUNDS)
        facts[endpoint] = {}
        for label, result in found.items():
            speed = ratio(times, "exhaustive search", label)
            share = result.seconds / found["exhaustive search"].seconds
            chosen = described(result.chosen.candidate)
            rows.append(
                [
                    f"{endpoint}: {label}",
                    chosen,
                    len(result.trials),
                    f"{result.seconds:.1f}",
                    f"{share:.2f}",
                    f"{speed:.3f}",
                ]
            )
            facts[endpoint][label] = {
                "chosen": chosen,
                "trials": len(result.trials),
                "seconds": round(result.seconds, 2),
                "of_exhaustive_seconds": round(share, 3),
                "rate_over_exhaustive": round(speed, 3),
            }
    columns = ["", "chosen", "trials", "seconds", "of exhaustive", "rate / exhaustive"]
    report("tuning", columns, rows, facts)


if __name__ == "__main__":
    main()
