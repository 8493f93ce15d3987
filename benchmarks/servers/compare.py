"""Requests a second and latencies of servers, each alone on the machine, in rounds that take turns.

`python benchmarks/servers/compare.py litserve triton --seconds 5 --rounds 1` measures those two. Ratios
are taken within a round, between a protocol of ours and each of a contender's that it stands against.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from contenders import CONTENDERS, ENVIRONMENTS, OURS, Server, agreement, running
from load import load
from protocols import ENDPOINTS

TOLERANCE = 1e-3  # between a server's posterior and Artifex's own
WARM_SECONDS = 1.0
REST_SECONDS = 1.0

Key = tuple[str, str, str, int]  # contender, protocol, endpoint, connections
AGAINST = {  # a contender's protocol: ours that does the same work for a client
    "json": ("v2-json",),
    "v2-json": ("v2-json",),
    "v2-binary": ("v2-binary", "v2-raw"),
}


def measure(
    server: Server, seconds: float, connections: Sequence[int], endpoints: Sequence[str]
) -> dict[Key, dict[str, float]]:
    """One round of a server: each protocol and endpoint, warmed up and then measured."""
    found: dict[Key, dict[str, float]] = {}
    contender = server.contender
    for protocol in contender.protocols:
        for endpoint in endpoints:
            requests = contender.requests(protocol, endpoint)
            url = server.endpoint_url(endpoint)
            for count in connections:
                load(url, requests, count, WARM_SECONDS)
                result = load(url, requests, count, seconds)
                found[contender.name, protocol, endpoint, count] = result._asdict()
    return found


def compare(
    names: Sequence[str] = tuple(CONTENDERS),
    *,
    seconds: float = 5.0,
    rounds: int = 3,
    connections: Sequence[int] = (64,),
    endpoints: Sequence[str] = ENDPOINTS,
    environments: Path = ENVIRONMENTS,
) -> dict[str, object]:
    """Measures servers in turn.

    Every second round goes through them backwards, so that a machine that drifts favours none.

    Args:
        names: Of the contenders.
        seconds: Length of a measurement.
        rounds: How often each server is started and measured.
        connections: Requests in flight; each number is a measurement of its own.
        endpoints: Which to measure.
        environments: Where `contenders.py` made the environments.

    Returns:
        `results`: contender, protocol, endpoint and connections, nested, to a list a round of rates,
        latencies and errors. `ratios`: the median over rounds of our rate over theirs, under
        "ours / contender theirs", endpoint and connections; empty without ours.
        `largest_difference`: of each contender's posterior from Artifex's, called directly.

    Raises:
        RuntimeError: A server does not start, or computes something else.
    """
    found: dict[Key, list[dict[str, float]]] = {}
    differences: dict[str, float] = {}
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            with running(CONTENDERS[name], environments) as server:
                if name not in differences:
                    differences[name] = max(
                        agreement(server, protocol) for protocol in server.contender.protocols
                    )
                    if not differences[name] <= TOLERANCE:
                        raise RuntimeError(f"{name} is off by {differences[name]}")
                for key, result in measure(server, seconds, connections, endpoints).items():
                    found.setdefault(key, []).append(result)
    results: dict[str, dict[str, dict[str, dict[str, object]]]] = {}
    for (name, protocol, endpoint, count), values in found.items():
        by_count = results.setdefault(name, {}).setdefault(protocol, {}).setdefault(endpoint, {})
        by_count[str(count)] = values
    return {"results": results, "ratios": ratios(found), "largest_difference": differences}


def ratios(found: Mapping[Key, Sequence[Mapping[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Median over rounds of our rate over each contender's."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for (name, protocol, endpoint, count), theirs in found.items():
        for our_protocol in AGAINST.get(protocol, ()):
            ours = found.get((OURS, our_protocol, endpoint, count))
            if name == OURS or ours is None:
                continue
            within = [
                our["requests_per_second"] / their["requests_per_second"]
                for our, their in zip(ours, theirs, strict=True)
            ]
            pair = table.setdefault(f"{our_protocol} / {name} {protocol}", {})
            pair.setdefault(endpoint, {})[str(count)] = statistics.median(within)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(CONTENDERS)}; all by default")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="+", default=[64])
    parser.add_argument("--endpoints", nargs="+", choices=ENDPOINTS, default=ENDPOINTS)
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which stops the server that runs
    found = compare(
        arguments.names or tuple(CONTENDERS),
        seconds=arguments.seconds,
        rounds=arguments.rounds,
        connections=arguments.connections,
        endpoints=arguments.endpoints,
        environments=arguments.environments.resolve(),
    )
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
