"""Where what is submitted and answered is kept: small beside its row, large in a file that is durable before the row."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeAlias

from falctl.router.jobs.bodies import INLINE_BYTES_MAX, Bodies

_AT_ONCE: Final = 4
"""Files written at a time."""

Payload: TypeAlias = tuple[int, bytes | None, str | None]
"""Its size, and its content or the file in which that stands."""


class Payloads:
    """Puts them in their place. Made and used on one event loop."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._threads = ThreadPoolExecutor(_AT_ONCE, "job-bodies")

    async def put(self, content: bytes) -> Payload:
        """
        Return where *content* is; what is in a file is durable.

        Raises:
            OSError: the disk is full or broken; nothing is left behind.
        """
        if len(content) <= INLINE_BYTES_MAX:
            return len(content), content, None
        loop = asyncio.get_running_loop()
        return len(content), None, await loop.run_in_executor(self._threads, self._bodies.write, content)

    def discard(self, payload: Payload | None) -> None:
        """Delete the file of a payload that no row will name."""
        if payload is not None and payload[2] is not None:
            self._bodies.discard([payload[2]])

    def close(self) -> None:
        """Finish what is being written. Blocks."""
        self._threads.shutdown()
