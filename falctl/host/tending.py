"""
Have idle models leave when their time is over: a timer on the event loop, the moves on the app's thread.

The caches say when; whoever ends a lease wakes the timer, because that may be earlier than what it waits for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final

from falctl.clock import monotonic_s
from falctl.host.app_threads import AppThreads
from falctl.host.prints.aside import aside
from falctl.tasks import spawn
from falctl.toolkit import ModelCache

log = logging.getLogger(__name__)

_AGAIN_S: Final = 5.0
"""How long nothing is tried after something was due that then did not leave, or whose leaving raised."""


class Tending:
    """Tends *caches*, to which more may come. `wake` may be called from any thread, all else on the event loop."""

    def __init__(self, caches: Sequence[ModelCache[Any]], threads: AppThreads) -> None:
        self._caches = caches
        self._threads = threads
        self._woken = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._not_before = 0.0

    def start(self) -> None:
        """Tend from now on, for as long as the process lives."""
        spawn(self._tend(), name="cache.tend")

    def wake(self) -> None:
        """Look again at when something is due."""
        self._loop.call_soon_threadsafe(self._woken.set)

    async def _tend(self) -> None:
        while True:
            self._woken.clear()
            at = self._next_at()
            if at is not None and at <= monotonic_s():
                await self._threads.run(self._tend_all)
                left_at = self._next_at()
                stuck = left_at is not None and left_at <= monotonic_s()
                self._not_before = monotonic_s() + _AGAIN_S if stuck else 0.0
            else:
                await self._wait(None if at is None else at - monotonic_s())

    async def _wait(self, seconds: float | None) -> None:
        try:
            await asyncio.wait_for(self._woken.wait(), seconds)
        except TimeoutError:
            return

    def _next_at(self) -> float | None:
        at = min((at for cache in self._caches if (at := cache.due_at()) is not None), default=None)
        return None if at is None else max(at, self._not_before)

    def _tend_all(self) -> None:
        with aside():
            for cache in self._caches:
                try:
                    cache.tend()
                except Exception:
                    log.exception("cache.tend_failed")
