"""Sliding windows over what has finished: how often, and how long it took."""

from __future__ import annotations

from collections import deque
from typing import Final

BUCKET_S: Final = 1.0
"""Resolution of `RateWindow`: an entry counts for the window's length, give or take this."""


class RateWindow:
    """Events per second over the last *window_s* seconds, in constant memory."""

    def __init__(self, *, window_s: float, started_at: float) -> None:
        self._window_s = window_s
        self._started_at = started_at
        self._buckets: deque[tuple[float, int]] = deque()
        """Start of the bucket, and the events in it; oldest first."""
        self._total = 0

    def add(self, *, now: float) -> None:
        """Count one event at monotonic instant *now*."""
        self._forget(now)
        self._total += 1
        if self._buckets and now - self._buckets[-1][0] < BUCKET_S:
            start, count = self._buckets[-1]
            self._buckets[-1] = (start, count + 1)
        else:
            self._buckets.append((now, 1))

    def rate(self, *, now: float) -> float:
        """Return events per second; a window that is not full yet is as long as the time since the start."""
        self._forget(now)
        return self._total / min(self._window_s, max(now - self._started_at, BUCKET_S))

    def _forget(self, now: float) -> None:
        while self._buckets and now - self._buckets[0][0] >= self._window_s:
            self._total -= self._buckets.popleft()[1]


class LatencyWindow:
    """The last *size* durations, and their quantiles."""

    def __init__(self, *, size: int) -> None:
        self._durations: deque[float] = deque(maxlen=size)

    def add(self, duration_s: float) -> None:
        self._durations.append(duration_s)

    def quantiles(self, *shares: float) -> tuple[float, ...]:
        """Return, for each share in 0..1, the duration that this share does not exceed; zeros if there is none."""
        ordered = sorted(self._durations)
        if not ordered:
            return (0.0,) * len(shares)
        last = len(ordered) - 1
        return tuple(ordered[min(int(share * len(ordered)), last)] for share in shares)
