"""
`affinity`: late binding with hits first, and a short hold for a busy warm runner.

In this order, for the free slots at hand:

1. **Overdue.** The oldest request has waited `bypass_max_s` or longer: it goes now, warm if it can.
2. **Hits.** The oldest request that is warm on a free runner, or that wants no hint in particular.
3. **Cold.** The oldest request that nobody is warm for or about to be; or whose warm runners have all been busy
   since it came, `hold_s` ago or longer, or as long ago as a load takes from host memory or beside its base, where a
   free runner has that. It goes to the runner that loads it from nearest, then gives up least: empty, fewest models.

One that has said that it has no room for the model is left out while another may have; who waits for that other holds
nobody else up, overdue or not.

So a request is passed by younger ones for `bypass_max_s` at most; from then on only by older ones, whose number
is fixed at that instant. Requests for one model share one load, because a runner that executes a request for a
hint counts as about to be warm for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import ClassVar

from falctl.core.costs import Costs
from falctl.core.fleet import Runner
from falctl.core.policies.base import Execute, State
from falctl.core.queue import Waiting
from falctl.core.types import Hint


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
            overdue = takewhile(lambda w: now - w.arrived_at >= self.bypass_max_s, state.queue)
            if (choice := _first_overdue(overdue, free, state)) is not None:
                return choice
        heads = sorted(state.queue.heads(), key=lambda w: w.order)
        return _hit(heads, free, state) or self._cold(heads, free, state, now)

    def _cold(self, heads: list[Waiting], free: list[Runner], state: State, now: float) -> Execute | None:
        for waiting in heads:
            hint = waiting.hint
            able = [r for r in free if not state.avoids(hint, r)]
            if not able:
                continue
            runner = _cheapest(able, hint, state.costs)
            held = hint is not None and any(state.fleet.warming(hint))
            if not held or now - waiting.arrived_at >= self._hold_s(hint, runner, state.costs):
                reason = "held long enough for a busy warm runner" if held else "nobody is warm for it"
                return Execute(waiting.request, runner.runner, reason)
        return None

    def _hold_s(self, hint: Hint | None, runner: Runner, costs: Costs) -> float:
        """Return how long to hold rather than load on *runner*: what is near is not waited for longer than it takes."""
        source = "disk" if hint is None else runner.source(hint)
        return (
            self.hold_s if hint is None or source == "disk" else min(self.hold_s, costs.load_s(hint, source))
        )


def _first_overdue(overdue: Iterable[Waiting], free: list[Runner], state: State) -> Execute | None:
    nowhere: set[Hint | None] = set()  # who has room for their models is busy
    for waiting in overdue:
        if waiting.hint not in nowhere:
            if (choice := _overdue(waiting, free, state)) is not None:
                return choice
            nowhere.add(waiting.hint)
    return None


def _overdue(waiting: Waiting, free: list[Runner], state: State) -> Execute | None:
    """Return where an overdue request goes; None: who has room for its model is busy."""
    if (choice := _hit([waiting], free, state)) is not None:
        return choice
    able = [runner for runner in free if not state.avoids(waiting.hint, runner)]
    if not able:
        return None
    runner = _cheapest(able, waiting.hint, state.costs).runner
    return Execute(waiting.request, runner, "overdue: next, warm or not")


def _hit(heads: list[Waiting], free: list[Runner], state: State) -> Execute | None:
    for waiting in heads:
        if waiting.hint is None:
            return Execute(waiting.request, _cheapest(free, None, state.costs).runner, "wants no hint")
        for runner in free:
            if state.fleet.warm(waiting.hint, runner):
                return Execute(waiting.request, runner.runner, "warm")
    return None


def _cheapest(free: list[Runner], hint: Hint | None, costs: Costs) -> Runner:
    """Return who has least to do, then who loads *hint* from nearest, then who gives up least for it."""

    def price(runner: Runner) -> tuple[int, float, int]:
        load_s = 0.0 if hint is None else costs.load_s(hint, runner.source(hint))
        return (len(runner.in_use), load_s, len(runner.hints or ()))

    return min(free, key=price)
