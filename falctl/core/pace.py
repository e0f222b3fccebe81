"""
How fast places in the queue turn free, so that whoever is refused can be told when to come back.

Only time in which something waits counts, and only requests that left the queue after they had waited in it: what
starts on arrival frees no place. The expected time to the next free place is the mean over the last `STARTS_MAX`
departures, with one pseudo-observation of what an execution takes over the number of slots; the time since the last
departure is part of it, so that the estimate grows while nothing starts. A client's own places turn free by its
share of these departures, starting from an equal share of all that wait.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

STARTS_MAX: Final = 64
"""Departures that are remembered: enough for a factor of about 1.3, few enough to follow a change of the load."""


@dataclass(slots=True)
class Pace:
    """Feed it every departure and, after every event, whether something waits. Instants are monotonic seconds."""

    _left: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=STARTS_MAX))
    """On the clock that runs while something waits: when a request left, and whose it was."""
    _from_s: float = 0.0
    """On that clock, when the departure before the oldest one remembered happened."""
    _waited_s: float = 0.0
    _since: float | None = None
    """Since when something waits; None: nothing does."""

    def leave(self, client: str, *, now: float) -> None:
        """Note that a request of *client* left the queue after it had waited."""
        if len(self._left) == STARTS_MAX:
            self._from_s = self._left[0][0]
        self._left.append((self._clock(now), client))

    def watch(self, *, waiting: bool, now: float) -> None:
        """Note whether something waits from *now* on."""
        self._waited_s = self._clock(now)
        self._since = now if waiting else None

    def gap_s(self, *, prior_s: float, now: float) -> float:
        """Return the expected time to the next free place; *prior_s* is what to expect of an unknown fleet."""
        return (prior_s + self._clock(now) - self._from_s) / (len(self._left) + 1)

    def share(self, client: str, *, clients: int) -> float:
        """Return the share of *client* in the places that turn free, above 0; *clients* wait or want to."""
        own = sum(1 for _, other in self._left if other == client)
        return (own + 1 / max(clients, 1)) / (len(self._left) + 1)

    def _clock(self, now: float) -> float:
        return self._waited_s if self._since is None else self._waited_s + now - self._since
