"""
The pipes into which a runner's C libraries and children print while requests run (`falctl.host.prints.native`).

The host reads them itself, to know whose lines these are. We hold the read ends for what it cannot: its last words when
it has died, and all of it while it does not read, stopped or stuck in C code, so that no writer waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import termios
from typing import Final

from falctl.lifeline import NativeFds
from falctl.supervisor.output import say

PIPE_BYTES: Final = 1 << 18
LOOK_S: Final = 0.25
_CHUNK_BYTES: Final = 1 << 16
_WORDS_MAX: Final = 64
"""Chunks that are read at once: a child that lives on may go on writing."""


class NativePipes:
    """The two pipes of one runner. Owned by the event loop."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        self.fds = NativeFds((out, err), (out_end, err_end))
        for read in self.fds.reads:
            os.set_blocking(read, False)
            with contextlib.suppress(OSError):  # beyond what one user may have of it they stay as they are
                fcntl.fcntl(read, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._full = min(fcntl.fcntl(read, fcntl.F_GETPIPE_SZ) for read in self.fds.reads) // 2

    def spawned(self) -> None:
        """Close the ends that only the child needs."""
        for write in self.fds.writes:
            os.close(write)

    async def relieve_for_ever(self) -> None:
        """Read in place of a host that does not."""
        while True:
            await asyncio.sleep(LOOK_S)
            for read in self.fds.reads:
                if _unread(read) > self._full:
                    self._print(read)

    def close(self) -> None:
        """Print what is left, and close."""
        for read in self.fds.reads:
            self._print(read)
            os.close(read)

    def _print(self, read: int) -> None:
        chunks = list[bytes]()
        with contextlib.suppress(OSError):
            while len(chunks) < _WORDS_MAX and (chunk := os.read(read, _CHUNK_BYTES)):
                chunks.append(chunk)
        for line in b"".join(chunks).decode(errors="replace").splitlines():
            say(f"[{self._prefix}] {line}")


def _unread(read: int) -> int:
    found = fcntl.ioctl(read, termios.FIONREAD, b"\0\0\0\0")
    return int.from_bytes(found, "little")
