"""The host memory of a simulated fleet: what its runners have loaded lately, shared by all of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from falctl.core.types import Hint


class HostRam:
    """At most *limit* of models, as *size_of* counts them; the one not used for longest leaves first."""

    def __init__(self, limit: float, size_of: Callable[[Hint], float]) -> None:
        self._limit = limit
        self._size_of = size_of
        self._held: OrderedDict[Hint, None] = OrderedDict()
        self._used = 0.0

    def __contains__(self, hint: Hint) -> bool:
        return hint in self._held

    @property
    def held(self) -> frozenset[Hint]:
        """Return what is in it."""
        return frozenset(self._held)

    def use(self, hint: Hint) -> None:
        """Note that *hint*, if it is there, is used."""
        if hint in self._held:
            self._held.move_to_end(hint)

    def put(self, hint: Hint) -> bool:
        """Take in *hint*, which has been read from disk; False: nothing has changed, as it is there or fits never."""
        size = self._size_of(hint)
        if hint in self._held or size > self._limit:
            return False
        while self._used + size > self._limit:
            gone, _ = self._held.popitem(last=False)
            self._used -= self._size_of(gone)
        self._held[hint] = None
        self._used += size
        return True
