"""
What C libraries and child processes write to file descriptors 1 and 2, where a runner has one slot.

From `begin` on both are pipes whose read ends the supervisor holds, too (`falctl.supervisor.native`): it reads what is
left when this process dies, so that the last words of a crash are not lost, and whenever nobody here has read for long,
as while C code holds the GIL, so that whoever writes never waits for long. Python's own streams keep the old descriptors.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from typing import Final, Protocol

from falctl.host.prints.transcript import Level
from falctl.lifeline import NativeFds

_CHUNK_BYTES: Final = 1 << 16
_CHUNKS_AT_END_MAX: Final = 16
_LEVELS: Final[tuple[Level, ...]] = ("STDOUT", "STDERR")


class Hears(Protocol):
    """Who is told what was written."""

    def hear(self, level: Level, data: bytes) -> None:
        """Take bytes of the request that holds the slot, if one does."""
        ...


class NativeOutput:
    """The two pipes. `drain` belongs to the event loop; a thread of its own reads meanwhile."""

    def __init__(self, fds: NativeFds, ears: Hears) -> None:
        self._ears = ears
        self._levels = dict(zip(fds.reads, _LEVELS, strict=True))
        self._outlets = {read: os.dup(number) for number, read in enumerate(fds.reads, 1)}
        self._writes = fds.writes
        self._lock = threading.Lock()
        self._at_once = self._poll()

    @property
    def outlets(self) -> dict[int, int]:
        """Return, for 1 and 2, the descriptor that leads where they led before."""
        return dict(enumerate(self._outlets.values(), 1))

    def begin(self) -> None:
        """Take the place of descriptors 1 and 2; nobody else of this process may write to them by then."""
        for number, write in enumerate(self._writes, 1):
            os.dup2(write, number)
            os.close(write)
        threading.Thread(target=self._read_on, name="native-output", daemon=True).start()

    def drain(self) -> None:
        """Take what has been written by now; costs a microsecond when nothing has."""
        for _ in range(_CHUNKS_AT_END_MAX):
            if not (found := self._at_once.poll(0)):
                return
            for read, _events in found:
                self._take(read)

    def _read_on(self) -> None:
        ready = self._poll()
        while True:
            for read, _ in ready.poll():
                self._take(read)

    def _poll(self) -> select.poll:
        """Return a poll of both, for one thread: two may not use the same one."""
        ready = select.poll()
        for read in self._levels:
            ready.register(read, select.POLLIN)
        return ready

    def _take(self, read: int) -> None:
        with self._lock, contextlib.suppress(OSError):  # the supervisor was faster, or is gone
            data = os.read(read, _CHUNK_BYTES)
            self._ears.hear(self._levels[read], data)
            while data:
                data = data[os.write(self._outlets[read], data) :]
