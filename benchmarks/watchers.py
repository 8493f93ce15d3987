"""64 clients that watch digits being drawn, each over a connection of its own, beside the Batcher in process.

A request is for one digit of 10, 20 or 50 steps of `mnist-diffusion`, with a preview every 10 steps as
server-sent events; clients ask again as soon as they are answered. The server is `artifex serve` in its own
process, on the cores that its clients use too. Then the same clients stay for a while, beside one that asks
every 50 ms whether the server lives, and one that has it load the model again and again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import numpy as np
from common import Facts, Row, report
from slots import CLIENTS, MIX, REQUESTS, Side, saturated, steps_of

EVERY, ROUNDS = 10, 3
BETWEEN_LOOKS = 0.05  # seconds, at whether the server lives
BETWEEN_LOADS = 20.0
STREAM = "/v2/models/mnist-diffusion/generate_stream"
LOAD = "/v2/repository/models/mnist-diffusion/load"


class Client:
    """A connection that is kept open; counts what comes."""

    def __init__(self, port: int):
        self._port = port
        self.previews = self.samples = 0

    async def __aenter__(self) -> Client:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._writer.close()

    async def ask(self, method: str, path: str, body: dict[str, object] | None = None) -> list[bytes]:
        """The chunks of an answer; anything but 200 is an error."""
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: here\r\nContent-Length: {len(content)}\r\n\r\n"
        self._writer.write(head.encode() + content)
        status, *headers = (await self._reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        length = [int(line.partition(b":")[2]) for line in headers if line.startswith(b"content-length:")]
        chunks = [await self._reader.readexactly(length[0])] if length else [c async for c in self._chunks()]
        if b" 200 " not in status + b" ":
            raise RuntimeError(f"{path}: {status.decode()} {chunks}")
        return chunks

    async def watch(self, steps: int, seed: int) -> None:
        """Draws a digit."""
        said = {"num_steps": steps, "label": 3, "seed": seed, "every": EVERY}
        events = b"".join(await self.ask("POST", STREAM, said)).split(b"\n\n")
        found = [json.loads(event.removeprefix(b"data: ")) for event in events if event]
        if [event.get("index") for event in found if "preview" not in event] != [0]:
            raise RuntimeError(f"no digit: {found[-1]}")
        self.previews += len(found) - 1
        self.samples += 1

    async def _chunks(self) -> AsyncIterator[bytes]:
        while size := int(await self._reader.readline(), 16):
            yield await self._reader.readexactly(size)
            await self._reader.readline()
        await self._reader.readline()


@contextlib.contextmanager
def serving() -> Iterator[tuple[int, int]]:
    """The port of a server that is ready, and its process."""
    command = [sys.executable, "-m", "artifex", "serve", "mnist-diffusion", "--port", "0", "--no-grpc"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        events = map(json.loads, process.stderr)
        url = next(event["url"] for event in events if event["event"] == "listening")
        next(event for event in events if event["event"] == "ready")
        yield int(url.rpartition(":")[2]), process.pid
    finally:
        process.terminate()
        process.communicate()
    if process.returncode:
        raise SystemExit(f"the server ended with {process.returncode}")


async def served(port: int, steps: Sequence[int]) -> tuple[float, float]:
    """Digits a second while all clients ask, and previews a digit."""
    ends: list[float] = []
    left = iter(enumerate(steps))
    last = 0.0
    watchers: list[Client] = []

    async def client() -> None:
        nonlocal last
        async with Client(port) as watcher:
            watchers.append(watcher)
            for seed, count in left:
                last = time.perf_counter()
                await watcher.watch(count, seed)
                ends.append(time.perf_counter())

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    rate = sum(end <= last for end in ends) / (last - start)
    return rate, sum(w.previews for w in watchers) / len(steps)


def resident_megabytes(process: int) -> float:
    """Memory of a server and of what takes its JSON apart."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in (process, *children)]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


async def stay(port: int, process: int, seconds: float) -> tuple[list[Row], Facts]:
    """The same clients for a while, with reloads, and looks at the server's health and memory."""
    end = time.perf_counter() + seconds
    looks: list[float] = []
    resident: list[float] = []
    samples = loads = 0

    async def client(number: int) -> None:
        nonlocal samples
        steps = np.random.default_rng(number)
        async with Client(port) as watcher:
            while time.perf_counter() < end:
                await watcher.watch(int(steps.choice(MIX)), int(steps.integers(1 << 31)))
            samples += watcher.samples

    async def health() -> None:
        async with Client(port) as asks:
            while time.perf_counter() < end:
                start = time.perf_counter()
                await asks.ask("GET", "/v2/health/live")
                looks.append(time.perf_counter() - start)
                await asyncio.sleep(BETWEEN_LOOKS)

    async def reload() -> None:
        nonlocal loads
        while time.perf_counter() + BETWEEN_LOADS < end:
            await asyncio.sleep(BETWEEN_LOADS)
            async with Client(port) as asks:
                await asks.ask("POST", LOAD)
            loads += 1

    async def memory() -> None:
        for moment in (seconds / 3, 2 * seconds / 3, seconds - 1.0):
            await asyncio.sleep(max(0.0, end - seconds + moment - time.perf_counter()))
            resident.append(resident_megabytes(process))

    await asyncio.gather(health(), reload(), memory(), *map(client, range(CLIENTS)))
    p50, p99 = (1e3 * float(np.quantile(looks, q)) for q in (0.5, 0.99))
    growth = resident[-1] - resident[0]
    rows: list[Row] = [
        [f"{seconds:g} s, {loads} reloads: digits", f"{samples:,}", "no error"],
        ["… /v2/health/live, p99", f"{p99:.1f} ms", f"p50 {p50:.1f} ms"],
        ["… memory", f"{resident[-1]:.0f} MB", f"{growth:+.1f} MB since a third of the time"],
    ]
    facts: Facts = {"health_p99_ms": round(p99, 2), "resident_megabytes": [round(r, 1) for r in resident]}
    return rows, facts | {"seconds": seconds, "reloads": loads, "digits": samples}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=300.0, help="How long the clients stay.")
    seconds = parser.parse_args().seconds
    side = Side(slots=True)
    rates: list[float] = []
    ours: list[float] = []
    with serving() as (port, process):
        for round_ in range(ROUNDS):
            steps = steps_of(REQUESTS, MIX, round_)
            ours.append(saturated(side, steps))
            rate, previews = asyncio.run(served(port, steps))
            rates.append(rate)
        side.close()
        found, facts = asyncio.run(stay(port, process, seconds))
    over = round(statistics.median(s / b for s, b in zip(rates, ours, strict=True)), 3)
    rows: list[Row] = [
        ["the Batcher in process", f"{statistics.median(ours):.1f}/s", ""],
        ["the server, 64 connections", f"{statistics.median(rates):.1f}/s", f"{over:.2f}"],
        ["… previews a digit", f"{previews:.1f}", ""],
    ]
    report(
        "watchers", ["digits", "", "server over Batcher"], rows + found, {"over the Batcher": over, **facts}
    )


if __name__ == "__main__":
    main()
