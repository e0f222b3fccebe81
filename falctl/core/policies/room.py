"""Where there is room for a model, and whom it would cost: the victims on each runner, cheapest first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from falctl.core.costs import Costs
from falctl.core.fleet import Runner
from falctl.core.policies.queues import Queues
from falctl.core.policies.worth import Worth
from falctl.core.types import Hint, RunnerId

Victims: TypeAlias = tuple[tuple[Hint, ...], float]
"""Models to evict, and what they are worth together, in load seconds per second."""

NOBODY: Victims = ((), 0.0)


@dataclass(slots=True)
class _Shelf:
    """One runner's memory: what is free, in bytes or models, and what could go, in order."""

    free: float
    candidates: list[tuple[Hint, float, float]]
    """Model, size, and when it is due itself."""
    last_turn: float
    """The latest of those: what is due after it gets no room here."""


@dataclass(slots=True)
class Room:
    """See the module; figures are carried over until `forget`."""

    queues: Queues
    worth: Worth
    _shelves: dict[RunnerId, _Shelf] = field(default_factory=dict)

    def victims(self, runner: Runner, hint: Hint, key: float, *, keep: Hint | None = None) -> Victims | None:
        """Return the cheapest set without *keep* that makes room for *hint*, due at *key*; None: no room now."""
        shelf = self._shelf(runner)
        missing = _size(hint, runner, self.queues.state.costs) - shelf.free
        if missing <= 0:
            return NOBODY
        return self._choose(shelf, missing, key, keep) if shelf.last_turn > key else None

    def last_turn(self, runners: Iterable[Runner]) -> float:
        """Return the latest key for which there may be room on one of *runners*."""
        return max(float("inf") if s.free > 0 else s.last_turn for s in map(self._shelf, runners))

    def forget(self, runners: Iterable[RunnerId]) -> None:
        """Look again at what *runners* could evict."""
        for runner in runners:
            self._shelves.pop(runner, None)

    def _choose(self, shelf: _Shelf, missing: float, key: float, keep: Hint | None) -> Victims | None:
        victims: list[Hint] = []
        loss = 0.0
        for victim, size, turn in shelf.candidates:
            if turn <= key or victim == keep:
                continue
            victims.append(victim)
            loss += self.worth.value(victim)
            missing -= size
            if missing <= 0:
                return tuple(victims), loss
        return None

    def _shelf(self, runner: Runner) -> _Shelf:
        known = self._shelves.get(runner.runner)
        if known is None:
            known = self._shelves[runner.runner] = self._look_at(runner)
        return known

    def _look_at(self, runner: Runner) -> _Shelf:
        costs, state = self.queues.state.costs, self.queues.state
        running = {r.hint for r in runner.in_use.values()}
        candidates = [
            (hint, _size(hint, runner, costs), self._own_turn(hint))
            for hint in self._in_order(runner)
            if hint not in running and hint not in runner.pinned
        ]
        last_turn = max((turn for _, _, turn in candidates), default=float("-inf"))
        used = sum(_size(h, runner, costs) for h in (*state.fleet.held(runner), *runner.loading))
        return _Shelf(_limit(runner) - used, candidates, last_turn)

    def _in_order(self, runner: Runner) -> list[Hint]:
        """Return what *runner* gives up, first to last: the least worth per byte, or what it used longest ago."""
        held = self.queues.state.fleet.held(runner)
        if runner.takes_jobs:
            costs, value = self.queues.state.costs, self.worth.value
            return sorted(held, key=lambda h: (value(h) / _size(h, runner, costs), h))
        return sorted(held, key=lambda h: (runner.used.get(h, -1), h))

    def _own_turn(self, hint: Hint) -> float:
        """Return when *hint* is due if its only copy is here: it goes only to make room for what is due before."""
        if not self.queues.state.queue.count(hint) or len(self.queues.copies.get(hint, ())) > 1:
            return float("inf")
        return self.queues.execute_key(hint)


def pinned_out(runner: Runner, hint: Hint, costs: Costs) -> bool:
    """Return whether what is pinned on *runner* leaves no room there for *hint*, which it does not hold."""
    if not runner.pinned or hint in (runner.hints or ()) or hint in runner.loading or runner.executes(hint):
        return False
    free = _limit(runner) - sum(_size(pinned, runner, costs) for pinned in runner.pinned)
    known = runner.caps.vram_bytes is None or costs.size_bytes(hint) is not None
    return _size(hint, runner, costs) > free if known else free <= 0


def _limit(runner: Runner) -> float:
    """Return what fits: bytes where the runner counts bytes, else models; without a limit there is always room."""
    limit = runner.caps.vram_bytes if runner.caps.vram_bytes is not None else runner.caps.models_max
    return float("inf") if limit is None else float(limit)


def _size(hint: Hint, runner: Runner, costs: Costs) -> float:
    if runner.caps.vram_bytes is None:
        return 1.0
    if known := costs.size_bytes(hint):
        return float(known)
    # One of unknown size is tried, also where the mean would not fit.
    pinned = sum(costs.size_bytes(other) or 0 for other in runner.pinned)
    return min(costs.mean_size.value, max(float(runner.caps.vram_bytes - pinned), 1.0))
