"""`least-loaded` and `random`: the baselines that know nothing of models."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Random:
    """
    The oldest request goes to any runner with a free slot.

    What looks drawn is a function of *seed* and the request's place in order of arrival, so that a restarted router,
    or a second replay, draws alike.
    """

    seed: int = 0

    def choose(self, state: State, *, now: float) -> Execute | None:
        """Return a dispatch whenever a slot is free; *now* plays no part."""
        del now
        waiting = state.queue.oldest()
        free = sorted(runner.runner for runner in state.fleet.free())
        if waiting is None or not free:
            return None
        return Execute(waiting.request, free[_mixed(self.seed, waiting.order) % len(free)], "drawn at random")


def _mixed(seed: int, n: int) -> int:
    """Return 64 bits that depend on every bit of both (SplitMix64: Steele, Lea, Flood 2014)."""
    mask = (1 << 64) - 1
    bits = (seed * 0xD1342543DE82EF95 + n * 0x9E3779B97F4A7C15) & mask
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & mask
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & mask
    return bits ^ (bits >> 31)
