"""
What apps print, by the request that they print it for: the one place where it arrives and where it is read.

Lines of a queued job are written to the job store every `WRITE_EVERY_S` and when its attempt is over, beside its
life: its end waits for none of that. Until then they are read from here. Lines of direct requests stay in memory, those
of the last `DIRECT_REQUESTS_MAX` that printed anything.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

from falctl import wire
from falctl.clock import monotonic_s
from falctl.core.jobs import JobState
from falctl.core.types import RequestId
from falctl.errors import StorageFullError
from falctl.router.jobs.keeper import Keeper
from falctl.router.jobs.live import Live
from falctl.router.jobs.records import LogLine
from falctl.router.runners.fleet import FleetLinks
from falctl.tasks import spawn

log = logging.getLogger(__name__)

WRITE_EVERY_S: Final = 1.0
"""A write is an fdatasync, and who follows reads from memory."""
DIRECT_REQUESTS_MAX: Final = 1024
DIRECT_BYTES_MAX: Final = 8 << 20
_JOBS_MAX: Final = 4096
"""Of jobs that were sent lately we remember that they are jobs: lines may come after their end."""
_LINE_COSTS_BYTES: Final = 64
_LAST_LINES_S: Final = 2.0
"""How long who asks for all lines of a request that has ended waits for its runner to say that these were all."""
_LOOK_S: Final = 0.005


class RequestLogs:
    """Owned by the event loop."""

    def __init__(self, keeper: Keeper, fleet: FleetLinks, *, news: Callable[[RequestId], None]) -> None:
        """*news* is called when a request has new lines."""
        self._keeper = keeper
        self._fleet = fleet
        self._direct = _Direct()
        self._jobs: OrderedDict[RequestId, None] = OrderedDict()
        self._fresh: dict[RequestId, list[LogLine]] = {}
        """Lines that are to be written."""
        self._writing: dict[RequestId, list[LogLine]] = {}
        self._retold: set[RequestId] = set()
        """Of their fresh lines, some may have been written before."""
        self._news = news
        self._timer: asyncio.TimerHandle | None = None
        self._writes: set[asyncio.Task[None]] = set()
        keeper.observers.append(self._observe)
        fleet.printed = self._hear
        fleet.released.append(self._released)

    async def lines(self, request: RequestId, *, skip: int = 0) -> list[LogLine]:
        """Return what was printed for *request* so far, in order, after the first *skip*; that only grows at its end."""
        if (direct := self._direct.lines(request)) is not None:
            return direct[skip:]
        unwritten = [*self._writing.get(request, ()), *self._fresh.get(request, ())]
        if not unwritten:
            return await self._keeper.store.logs(request, skip=skip)
        stored = await self._keeper.store.logs(request)
        known = set(stored)  # some of it may have been written while we read
        return [*stored, *(line for line in unwritten if line not in known)][skip:]

    async def settled(self, request: RequestId) -> None:
        """Wait until the runner of *request*, which has ended, has told its last lines; for a moment at most."""
        give_up_at = monotonic_s() + _LAST_LINES_S
        while self._fleet.holds(request) and monotonic_s() < give_up_at:  # noqa: ASYNC110 - it may die and say nothing
            await asyncio.sleep(_LOOK_S)

    def has(self, request: RequestId) -> bool:
        """Return whether anything is known to have been printed for *request*, a direct one."""
        return self._direct.lines(request) is not None

    async def flush(self) -> None:
        """Write what is to be written; return when it is on the disk."""
        self._write_all()
        while self._writes:
            await asyncio.wait(self._writes)

    # --- what comes ----------------------------------------------------------------------------------

    def _hear(self, message: wire.Printed) -> None:
        request = RequestId(message.request)
        lines = [LogLine(at, level, text) for at, level, text in message.lines]
        if request in self._jobs or self._keeper.find(request) is not None:
            self._take(request, lines, again=message.again)
        else:
            self._direct.add(request, lines, again=message.again)
        self._news(request)

    def _take(self, request: RequestId, lines: list[LogLine], *, again: bool) -> None:
        fresh = self._fresh.setdefault(request, [])
        if again:
            self._retold.add(request)
            lines = _unknown(lines, [*self._writing.get(request, ()), *fresh])
        fresh += lines
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(WRITE_EVERY_S, self._write_all)

    def _released(self, request: RequestId) -> None:
        if request in self._fresh:
            self._write(request)

    def _observe(self, live: Live, state: JobState) -> None:
        if state == "running":
            self._jobs[live.job.request] = None
            if len(self._jobs) > _JOBS_MAX:
                self._jobs.popitem(last=False)

    # --- what is written -----------------------------------------------------------------------------

    def _write_all(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for request in list(self._fresh):
            self._write(request)

    def _write(self, request: RequestId) -> None:
        lines, retold = self._fresh.pop(request), request in self._retold
        self._retold.discard(request)
        self._writing.setdefault(request, []).extend(lines)
        task = spawn(self._store(request, lines, retold=retold), name=f"logs-{request}")
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def _store(self, request: RequestId, lines: list[LogLine], *, retold: bool) -> None:
        try:
            await self._keeper.store.add_logs(request, lines, retold=retold)
        except StorageFullError as error:
            log.warning("logs.not_saved request=%s lines=%d: %s", request, len(lines), error.detail)
        finally:
            writing = self._writing[request]
            del writing[: len(lines)]  # writes end in the order in which they began
            if not writing:
                del self._writing[request]


class _Direct:
    """Lines of requests that are no jobs; the request that printed first leaves first."""

    def __init__(self) -> None:
        self._lines: OrderedDict[RequestId, list[LogLine]] = OrderedDict()
        self._bytes = 0

    def lines(self, request: RequestId) -> list[LogLine] | None:
        found = self._lines.get(request)
        return None if found is None else list(found)

    def add(self, request: RequestId, lines: list[LogLine], *, again: bool) -> None:
        known = self._lines.setdefault(request, [])
        lines = _unknown(lines, known) if again else lines
        known += lines
        self._bytes += _size(lines)
        while len(self._lines) > DIRECT_REQUESTS_MAX or (
            self._bytes > DIRECT_BYTES_MAX and len(self._lines) > 1
        ):
            _, dropped = self._lines.popitem(last=False)
            self._bytes -= _size(dropped)


def _unknown(lines: Iterable[LogLine], known: Iterable[LogLine]) -> list[LogLine]:
    found = set(known)
    return [line for line in lines if line not in found]


def _size(lines: Iterable[LogLine]) -> int:
    return sum(len(line.message) + _LINE_COSTS_BYTES for line in lines)
