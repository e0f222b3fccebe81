"""Cuts a client off that blocks what we send to it for too long; uvicorn has no such deadline."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

log = logging.getLogger(__name__)


class SendDeadline:
    """The deadline of one connection. Lives on its event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, cut_off: Callable[[], None]) -> None:
        """*cut_off* is called when it is over."""
        self._loop = loop
        self._cut_off = cut_off
        self._timer: asyncio.TimerHandle | None = None

    def start(self, *, within_s: float) -> None:
        """The client takes nothing more: it has this long, unless it had been given a time before."""
        if self._timer is None:
            self._timer = self._loop.call_later(within_s, self._over)

    def stop(self) -> None:
        """The client reads again, or is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _over(self) -> None:
        self._timer = None
        self._cut_off()
