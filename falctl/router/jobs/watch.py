"""
Wakes those who watch requests: at once when a job comes into another state, after a moment when its place or logs change.

Who watches reads for himself what is true then, so that nothing is queued for a slow one. Places are looked at by one
timer for all, and only while something changes, as far as that is told.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from falctl.core.jobs import JobState
from falctl.core.types import RequestId
from falctl.router.jobs.live import Live

FLUSH_S: Final = 0.25
"""Places and logs that change within this are told together."""


class Watch:
    """One who watches one job. ``over``: he is to end, because his client is gone or the router ends."""

    def __init__(self) -> None:
        self.over = False
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """Let `changed` return."""
        self._changed.set()

    def end(self) -> None:
        """Let him end."""
        self.over = True
        self._changed.set()

    async def changed(self, *, within_s: float) -> bool:
        """Return True when something may have changed since the last call, False after *within_s* of nothing."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._changed.wait()
        changed = self._changed.is_set()
        self._changed.clear()
        return changed


class Watchers:
    """Owner of who watches which request. One event loop."""

    def __init__(self, look: Callable[[RequestId], object], *, always: bool = False) -> None:
        """
        *look* tells what of a request changes without a word: the place of a job that waits.

        *always*: look as long as anybody watches, since nobody tells that there is a reason to.
        """
        self._look = look
        self._always = always
        self._watches: dict[RequestId, set[Watch]] = {}
        self._seen: dict[RequestId, object] = {}
        self._printed = set[RequestId]()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def __len__(self) -> int:
        return sum(len(watches) for watches in self._watches.values())

    @contextmanager
    def watch(self, request: RequestId) -> Iterator[Watch]:
        """Give a watch of *request*; what happens from now on wakes it."""
        watch = Watch()
        watch.over = self._closed
        self._watches.setdefault(request, set()).add(watch)
        self._seen.setdefault(request, self._look(request))
        if self._always:
            self._flush_soon()
        try:
            yield watch
        finally:
            watches = self._watches[request]
            watches.discard(watch)
            if not watches:
                del self._watches[request], self._seen[request]

    def hear(self, live: Live, state: JobState) -> None:
        """Take note of a job's new state; an `Observe` of the keeper."""
        if not self._watches:
            return
        self.wake(live.job.request)
        self._flush_soon()  # whoever stands behind it may have another place now

    def printed(self, request: RequestId) -> None:
        """Take note that there is more in the logs of *request*."""
        if request in self._watches:
            self._printed.add(request)
            self._flush_soon()

    def close(self) -> None:
        """End all, now and in future."""
        self._closed = True
        for watches in self._watches.values():
            for watch in watches:
                watch.end()
        if self._timer is not None:
            self._timer.cancel()

    def _flush_soon(self) -> None:
        if self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self._flush)

    def _flush(self) -> None:
        self._timer = None
        moved = {r: now for r, before in self._seen.items() if (now := self._look(r)) != before}
        self._seen |= moved
        for request in moved.keys() | self._printed:
            self.wake(request)
        self._printed.clear()
        if self._always and self._watches:
            self._flush_soon()

    def wake(self, request: RequestId) -> None:
        """Wake those who watch *request* now."""
        for watch in self._watches.get(request, ()):
            watch.wake()
