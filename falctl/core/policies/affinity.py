"""
`affinity`: late binding with hits first, and a short hold for a busy warm runner.

In this order, for the free slots at hand:

1. **Overdue.** The oldest request has waited `bypass_max_s` or longer: it goes now, warm if it can.
2. **Hits.** The oldest request that is warm on a free runner, or that wants no hint in particular.
3. **Cold.** The oldest request that nobody is warm for or about to be; or whose warm runners have all been busy
   since it came, `hold_s` ago or longer. It goes to the runner that gives up least: empty, then fewest models.

So a request is passed by younger ones for `bypass_max_s` at most; from then on only by older ones, whose number
is fixed at that instant. Requests for one model share one load, because a runner that executes a request for a
hint counts as about to be warm for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from falctl.core.fleet import Fleet, Runner
from falctl.core.policies.base import Execute, State
from falctl.core.queue import Waiting


@dataclass(frozen=True, slots=True)
class Affinity:
    """See the module. Both limits are in seconds."""

    hold_s: float
    bypass_max_s: float
    tick_s: ClassVar[float] = 0.5
    """How late a replay lets either limit fire; see `falctl.replay.world`."""

    def choose(self, state: State, *, now: float) -> Execute | None:
        """Return the next dispatch; None when everything that waits holds for a busy warm runner."""
        oldest = state.queue.oldest()
        free = state.fleet.free()
        if oldest is None or not free:
            return None
        if now - oldest.arrived_at >= self.bypass_max_s:
            return _overdue(oldest, free, state.fleet)
        heads = sorted(state.queue.heads(), key=lambda w: w.order)
        return _hit(heads, free, state.fleet) or self._cold(heads, free, state.fleet, now)

    def _cold(self, heads: list[Waiting], free: list[Runner], fleet: Fleet, now: float) -> Execute | None:
        for waiting in heads:
            held = waiting.hint is not None and any(fleet.warming(waiting.hint))
            if not held or now - waiting.arrived_at >= self.hold_s:
                reason = "held long enough for a busy warm runner" if held else "nobody is warm for it"
                return Execute(waiting.request, _cheapest(free).runner, reason)
        return None


def _overdue(waiting: Waiting, free: list[Runner], fleet: Fleet) -> Execute:
    choice = _hit([waiting], free, fleet)
    return choice or Execute(waiting.request, _cheapest(free).runner, "overdue: next, warm or not")


def _hit(heads: list[Waiting], free: list[Runner], fleet: Fleet) -> Execute | None:
    for waiting in heads:
        if waiting.hint is None:
            return Execute(waiting.request, _cheapest(free).runner, "wants no hint")
        for runner in free:
            if fleet.warm(waiting.hint, runner):
                return Execute(waiting.request, runner.runner, "warm")
    return None


def _cheapest(free: list[Runner]) -> Runner:
    return min(free, key=lambda r: (len(r.in_use), len(r.hints or ())))
