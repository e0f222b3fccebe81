"""`least-loaded`: the baseline that knows nothing of models."""

from __future__ import annotations

from falctl.core.policies.base import Execute, State


class LeastLoaded:
    """The oldest request goes to the runner with the fewest requests in flight, by turns among equals."""

    def choose(self, state: State, *, now: float) -> Execute | None:
        """Return a dispatch whenever a slot is free; *now* plays no part."""
        del now
        waiting = state.queue.oldest()
        free = state.fleet.free()
        if waiting is None or not free:
            return None
        return Execute(waiting.request, min(free, key=lambda r: len(r.in_use)).runner, "least loaded")
