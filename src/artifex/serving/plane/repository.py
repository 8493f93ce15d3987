"""The models of a server: loaded, replaced while requests run, and unloaded."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from artifex.generative_models.core.errors import ArtifexError, InputError
from artifex.generative_models.inference.batching.stats import BatcherStats
from artifex.serving.observe.events import log_event
from artifex.serving.observe.metrics import ModelCounters
from artifex.serving.plane.loaded_model import LoadedModel, ServedEndpoint
from artifex.serving.plane.origins import Source
from artifex.serving.plane.statuses import NotFoundError, NotReadyError, UnloadableError

_TAKEN = ("infer", "stats")  # by paths of the protocol
_MAX_VERSIONS = 8  # whose counters are kept
_SECONDS_BETWEEN_LINES = 1.0

Counters = dict[str, dict[str, BatcherStats]]  # by version and endpoint


@dataclass
class Entry:
    """A model that the server knows.

    Args:
        name: Its name.
        source: Where it comes from.
        state: UNAVAILABLE, LOADING or READY.
        reason: Why it is unavailable.
        loaded: What requests run on; None where it is not loaded.
        identity: Of what was loaded last, or failed to.
        draining: Earlier states that still have requests.
        retired: What states before them did, by version and endpoint.
    """

    name: str
    source: Source
    state: str = "UNAVAILABLE"
    reason: str = "not loaded yet"
    loaded: LoadedModel | None = None
    identity: Any = None
    draining: list[LoadedModel] = field(default_factory=list)
    retired: Counters = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def counters(self) -> ModelCounters:
        """What all its states did; none of it ever becomes less."""
        totals = {version: dict(by_endpoint) for version, by_endpoint in self.retired.items()}
        for loaded in (*self.draining, self.loaded):
            if loaded is not None:
                _add(totals, loaded)
        if self.loaded is None:
            return ModelCounters(self.name, totals, None, 0)
        return ModelCounters(self.name, totals, self.loaded.version, self.loaded.executor.compile_count)


class Repository:
    """The models of one server. All methods but `find` are for the event loop's thread.

    Args:
        sources: Where each model comes from, by name.
        max_queued_rows: Rows that may wait, for each model.
        deterministic: Whether each runs everything in batches of one size.

    Raises:
        InputError: A name with other characters than letters, digits, dots, dashes and underscores.
    """

    def __init__(self, sources: Mapping[str, Source], *, max_queued_rows: int, deterministic: bool = False):
        for name in sources:
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name) or name in _TAKEN:
                raise InputError(f"{name!r} cannot be a model's name; give one: NAME=DIRECTORY")
        self.entries = {name: Entry(name, source) for name, source in sources.items()}
        self._max_queued_rows = max_queued_rows
        self._deterministic = deterministic
        # One at a time, since loading takes all cores; a thread, since it takes seconds.
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="artifex-loader")
        self._drains: set[asyncio.Task[None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.settle: Callable[[], None] = lambda: None  # called in a thread when a model is about to be ready

    @property
    def is_ready(self) -> bool:
        """Whether every model is loaded, besides those that were unloaded on purpose."""
        return all(entry.state == "READY" or entry.reason == "unloaded" for entry in self.entries.values())

    @property
    def is_loading(self) -> bool:
        """Whether a model is being loaded."""
        return bool(self._tasks)

    def find(self, name: str, version: str = "") -> tuple[LoadedModel, ServedEndpoint]:
        """The model and endpoint of a name: `model.endpoint`, or `model`, which is its `generate`.

        Args:
            name: The name.
            version: Its version; "" is the one that is loaded.

        Raises:
            NotFoundError: There is no such model, endpoint or version.
            NotReadyError: It is not loaded.
        """
        entry, endpoint = self.entries.get(name), "generate"
        if entry is None:
            model, _, endpoint = name.rpartition(".")
            entry = self.entries.get(model) or self._entry(name)
        loaded = entry.loaded
        if loaded is None:
            raise NotReadyError(f"{entry.name} is not ready: {entry.reason}")
        if version and version != loaded.version:
            raise NotFoundError(
                f"{entry.name} has no version {version[:100]!r} loaded; there is {loaded.version}"
            )
        served = loaded.endpoints.get(endpoint)
        if served is None:
            raise NotFoundError(
                f"{entry.name} has no endpoint {endpoint[:100]!r}; there are {', '.join(loaded.endpoints)}"
            )
        return loaded, served

    async def load(self, name: str) -> None:
        """Loads or reloads a model beside what is loaded, then replaces it.

        Requests that wait go on with the old weights; new ones get the new.

        Raises:
            NotFoundError: There is no such model.
            UnloadableError: It cannot be loaded; what is loaded stays.
        """
        loading = asyncio.ensure_future(self._load(self._entry(name)))
        self._tasks.add(loading)
        loading.add_done_callback(self._ended)
        await asyncio.shield(loading)

    def _ended(self, loading: asyncio.Future[None]) -> None:
        self._tasks.discard(loading)
        if not loading.cancelled():
            loading.exception()  # who asked may have left; the log has what failed

    async def _load(self, entry: Entry) -> None:
        name = entry.name
        async with entry.lock:
            if entry.loaded is None:
                entry.state, entry.reason = "LOADING", "loading"
            log_event("loading", model=name)
            try:
                loaded = await asyncio.get_running_loop().run_in_executor(self._loader, self._open, entry)
            except Exception as error:  # whatever it is: what is loaded goes on
                entry.reason = f"loading failed: {type(error).__name__}"
                if entry.loaded is None:
                    entry.state = "UNAVAILABLE"
                expected = isinstance(error, ArtifexError | OSError)
                log_event(
                    "loading failed",
                    None if expected else error,
                    model=name,
                    reason=str(error) or type(error).__name__,
                )
                raise UnloadableError(f"{name}: {entry.reason}; the server's log tells more") from error
            if self._closed:
                await asyncio.to_thread(loaded.batcher.close)
                raise NotReadyError("the server has stopped")
            old, entry.loaded = entry.loaded, loaded
            entry.state, entry.reason = "READY", ""
            log_event(
                "ready",
                model=name,
                version=loaded.version,
                warmup_seconds=round(loaded.warmup_seconds, 3),
                compiled=loaded.num_compiled,
            )
            if old is not None:
                self._retire(entry, old)

    async def unload(self, name: str) -> None:
        """Takes a model away; requests that wait are answered.

        Raises:
            NotFoundError: There is no such model.
        """
        entry = self._entry(name)
        async with entry.lock:
            old, entry.loaded = entry.loaded, None
            entry.state, entry.reason = "UNAVAILABLE", "unloaded"
            log_event("unloaded", model=name)
            if old is not None:
                self._retire(entry, old)

    async def watch(self, seconds: float) -> None:
        """Reloads models whose files changed, until it is cancelled.

        Args:
            seconds: Time between looks.
        """
        while True:
            await asyncio.sleep(seconds)
            for entry in self.entries.values():
                if entry.reason == "unloaded":
                    continue
                try:
                    identity = await asyncio.to_thread(entry.source.identity)
                    if identity != entry.identity:
                        await self.load(entry.name)
                except (ArtifexError, OSError) as error:  # next time, perhaps; load() has said why
                    entry.reason = str(error) if entry.loaded is None else entry.reason

    def index(self, *, only_ready: bool = False) -> list[dict[str, str]]:
        """The models, as the repository extension lists them.

        Args:
            only_ready: Leaves out those that are not loaded.
        """
        return [
            {
                "name": name,
                "version": "" if entry.loaded is None else entry.loaded.version,
                "state": entry.state,
                "reason": entry.reason,
            }
            for name, entry in self.entries.items()
            if entry.state == "READY" or not only_ready
        ]

    async def close(self) -> None:
        """Finishes what waits and lets go of all models."""
        self._closed = True
        self._loader.shutdown(wait=False, cancel_futures=True)
        loaded = [entry.loaded for entry in self.entries.values() if entry.loaded is not None]
        await asyncio.gather(*self._drains, *map(_drain, loaded))

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise NotFoundError(f"unknown model {name[:100]!r}; there are {', '.join(self.entries)}")
        return self.entries[name]

    def _open(self, entry: Entry) -> LoadedModel:
        entry.identity = entry.source.identity()
        pipeline, version = entry.source.open()

        said = time.monotonic()

        def progress(endpoint: str, done: int, total: int) -> None:
            nonlocal said
            if done == total or time.monotonic() >= said + _SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                log_event("warm-up", model=entry.name, endpoint=endpoint, done=done, total=total)

        loaded = LoadedModel(
            pipeline,
            version,
            replaces=entry.loaded,
            max_queued_rows=self._max_queued_rows,
            deterministic=self._deterministic,
            progress=progress,
        )
        self.settle()
        return loaded

    def _retire(self, entry: Entry, old: LoadedModel) -> None:
        entry.draining.append(old)

        async def drain() -> None:
            await _drain(old)
            entry.draining.remove(old)
            _add(entry.retired, old)
            while len(entry.retired) > _MAX_VERSIONS:
                del entry.retired[next(iter(entry.retired))]

        task = asyncio.ensure_future(drain())
        self._drains.add(task)
        task.add_done_callback(self._drains.discard)


def _add(totals: Counters, loaded: LoadedModel) -> None:
    """Adds what a state of a model did."""
    totals_of_version = totals.setdefault(loaded.version, {})
    for endpoint, stats in loaded.counters().items():
        totals_of_version[endpoint] = totals_of_version.get(endpoint, BatcherStats()) + stats


async def _drain(loaded: LoadedModel) -> None:
    """Answers what waits for a model, streams included, and ends its threads."""
    await loaded.unused()
    await asyncio.to_thread(loaded.batcher.close)
