"""For how long somebody who looks often has looked: what is silent while nobody looks is no hang."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

GAP_S: Final = 3.0
"""Who looks four times a second and has not for so long was stopped itself (`docker pause`, a debugger, a machine
that swaps), and those whom it watches perhaps with it: that time is not held against them."""
GAPS_MAX: Final = 128
"""Of more, the oldest count as watched, so that even a machine that stops again and again finds a hang in the end."""

Gap: TypeAlias = tuple[float, float]
"""From when to when nobody looked."""


@dataclass(slots=True)
class Lookout:
    """Its owner calls `look` whenever it looks."""

    _gaps: deque[Gap] = field(default_factory=lambda: deque(maxlen=GAPS_MAX))
    _last_at: float = float("-inf")

    def look(self, *, now: float) -> None:
        """Note a look."""
        if now - self._last_at > GAP_S:
            self._gaps.append((self._last_at, now))
        self._last_at = now

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """Return when nobody looked, the first of them all the time before the first look."""
        return tuple(self._gaps)


def watched_s(since: float, gaps: Iterable[Gap], *, now: float) -> float:
    """Return for how long somebody has looked between *since* and *now*."""
    return now - since - sum(end - max(begin, since) for begin, end in gaps if end > since)
