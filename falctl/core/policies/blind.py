"""`least-loaded`: the baseline that knows nothing of models."""

from __future__ import annotations

from falctl.core.fleet import Fleet
from falctl.core.policies.base import Choice
from falctl.core.queue import WaitingQueue


class LeastLoaded:
    """The oldest request goes to the runner with the fewest requests in flight, by turns among equals."""

    def choose(self, queue: WaitingQueue, fleet: Fleet, *, now: float) -> Choice | None:
        """Return a dispatch whenever a slot is free; *now* plays no part."""
        del now
        waiting = queue.oldest()
        free = fleet.free()
        if waiting is None or not free:
            return None
        return Choice(waiting.request, min(free, key=lambda r: len(r.in_use)).runner, "least loaded")
