"""Where there is room for a model, and whom it would cost: the victims on each runner, cheapest first."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from falctl.core.fleet import Runner
from falctl.core.policies.queues import Queues
from falctl.core.policies.space import beside_pins, cap_of, is_squeezed, limit_of, size_on
from falctl.core.policies.worth import Worth
from falctl.core.types import Hint, RunnerId

Victims: TypeAlias = tuple[tuple[Hint, ...], float]
"""Models to evict, and what they are worth together, in load seconds per second."""

NOBODY: Victims = ((), 0.0)


@dataclass(slots=True)
class _Shelf:
    """One runner's memory: what is free, in bytes or models, and what could go, in order."""

    free: float
    places: float
    """Where bytes count and models are capped, too: how many more there may be."""
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
        """
        Return the cheapest set that makes room for *hint*, due at *key*; None: there is no room now.

        Neither *keep* nor the base of *hint* is in it.
        """
        shelf = self._shelf(runner)
        missing = self._size(hint, runner) - shelf.free
        if missing <= 0 and shelf.places > 0:
            return NOBODY
        keeps = (keep, runner.base(hint) or runner.kin(hint))
        return self._choose(shelf, runner, missing, key, keeps) if shelf.last_turn > key else None

    def last_turn(self, runners: Iterable[Runner]) -> float:
        """Return the latest key for which there may be room on one of *runners*."""
        shelves = map(self._shelf, runners)
        return max(float("inf") if s.free > 0 and s.places > 0 else s.last_turn for s in shelves)

    def forget(self, runners: Iterable[RunnerId]) -> None:
        """Look again at what *runners* could evict."""
        for runner in runners:
            self._shelves.pop(runner, None)

    def _choose(
        self, shelf: _Shelf, runner: Runner, missing: float, key: float, keeps: Collection[Hint | None]
    ) -> Victims | None:
        victims: list[Hint] = []
        loss = 0.0
        for victim, size, turn in shelf.candidates:
            if turn <= key or victim in keeps:
                continue
            victims.append(victim)
            loss += self.worth.value(victim, runner)
            missing -= size
            if missing <= 0 and shelf.places + len(victims) > 0:
                return tuple(victims), loss
        return None

    def _shelf(self, runner: Runner) -> _Shelf:
        known = self._shelves.get(runner.runner)
        if known is None:
            known = self._shelves[runner.runner] = self._look_at(runner)
        return known

    def _look_at(self, runner: Runner) -> _Shelf:
        state = self.queues.state
        running = {r.hint for r in runner.in_use.values()}
        candidates = [
            (hint, self._size(hint, runner), self._own_turn(hint))
            for hint in self._in_order(runner)
            if hint not in running and hint not in runner.pinned
        ]
        last_turn = max((turn for _, _, turn in candidates), default=float("-inf"))
        there = (*state.fleet.held(runner), *runner.loading)
        used = sum(self._size(h, runner) for h in there)
        return _Shelf(limit_of(runner) - used, cap_of(runner) - len(there), candidates, last_turn)

    def _in_order(self, runner: Runner) -> list[Hint]:
        """Return what *runner* gives up, first to last: the least worth per byte, or what it used longest ago."""
        held = self.queues.state.fleet.held(runner)
        if runner.takes_jobs:
            size, value = self._size, self.worth.value
            return sorted(held, key=lambda h: (value(h, runner) / size(h, runner), h))
        return sorted(held, key=lambda h: (runner.used.get(h, -1), h))

    def _size(self, hint: Hint, runner: Runner) -> float:
        """Return how much of *runner* a model takes, or would take."""
        size, costs = size_on(hint, runner, self.queues.state.costs), self.queues.state.costs
        squeezed = is_squeezed(hint, size, runner, others=self.queues.runners, costs=costs)
        return max(beside_pins(runner, hint, costs), 1.0) if squeezed else size

    def _own_turn(self, hint: Hint) -> float:
        """Return when *hint* is due if its only copy is here: it goes only to make room for what is due before."""
        if not self.queues.state.queue.count(hint) or len(self.queues.copies.get(hint, ())) > 1:
            return float("inf")
        return self.queues.execute_key(hint)
