"""A closed load from outside: `wrk` keeps so many connections busy, each with one request out at a time."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from protocols import Requests, bodies

__all__ = ["Load", "Requests", "bodies", "load"]

SCRIPT = Path(__file__).with_name("load.lua")
TIMEOUT_SECONDS = 10  # after which wrk counts a request as lost


class Load(NamedTuple):
    """What the clients saw; `errors` are lost connections, timeouts and answers other than 2xx or 3xx."""

    requests_per_second: float
    p50_ms: float
    p99_ms: float
    errors: int


def load(url: str, requests: Requests, connections: int, seconds: float) -> Load:
    """Posts the requests in turn for a while, from one thread.

    Args:
        url: Where to.
        requests: Headers and bodies.
        connections: Requests in flight at any time.
        seconds: For how long; wrk takes whole seconds.
    """
    with tempfile.TemporaryDirectory() as scratch:
        headers = Path(scratch, "headers")
        headers.write_text("".join(f"{name}: {value}\n" for name, value in requests.headers.items()))
        paths = [Path(scratch, f"body{i}") for i in range(len(requests.bodies))]
        for path, body in zip(paths, requests.bodies, strict=True):
            path.write_bytes(body)
        options = [f"-c{connections}", f"-d{max(1, round(seconds))}s", f"--timeout={TIMEOUT_SECONDS}s"]
        done = subprocess.run(
            ["wrk", "-t1", *options, "-s", SCRIPT, url, "--", headers, *paths],
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise RuntimeError(f"wrk: {done.stdout}{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    errors = sum(found[kind] for kind in ("refused", "broken", "timed_out", "bad_status"))
    served = found["requests"] - found["bad_status"]
    return Load(served / found["seconds"], found["p50_ms"], found["p99_ms"], errors)
