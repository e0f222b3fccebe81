"""Which stretches of a buffer are complete, while many threads fill it here and there."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import TypeAlias

Range: TypeAlias = tuple[int, int]
"""Where some bytes of a buffer begin, and how many they are."""


class Cells:
    """
    A buffer in *cell_bytes* each, of which only what is *expected* will be written. Thread-safe.

    Small enough that a cell that is complete was written just now, and lies in the processor's caches still; large
    enough that one copy for each costs nothing beside its bytes.
    """

    def __init__(self, nbytes: int, expected: Iterable[Range], *, cell_bytes: int) -> None:
        self._nbytes = nbytes
        self._cell_bytes = cell_bytes
        self._missing = [0] * -(-nbytes // cell_bytes)
        self._lock = threading.Lock()
        for cell, size in self._parts(expected):
            self._missing[cell] += size

    def complete(self, written: Sequence[Range]) -> list[Range]:
        """Return what *written* has completed; each cell once, those of which nothing was expected never."""
        done: list[Range] = []
        with self._lock:
            for cell, size in self._parts(written):
                self._missing[cell] -= size
                if self._missing[cell] == 0:
                    begin = cell * self._cell_bytes
                    done.append((begin, min(self._cell_bytes, self._nbytes - begin)))
        return done

    def _parts(self, ranges: Iterable[Range]) -> Iterable[Range]:
        """Yield what of each of *ranges* lies in which cell."""
        for begin, size in ranges:
            at, end = begin, begin + size
            while at < end:
                cell = at // self._cell_bytes
                until = min(end, (cell + 1) * self._cell_bytes)
                yield cell, until - at
                at = until
