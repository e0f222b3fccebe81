"""Where there is room for a model, and whom it would cost: the victims on each runner, cheapest first."""

from __future__ import annotations

from collections.abc import Collection, Iterable
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
        return _Shelf(_limit(runner) - used, _cap(runner) - len(there), candidates, last_turn)

    def _in_order(self, runner: Runner) -> list[Hint]:
        """Return what *runner* gives up, first to last: the least worth per byte, or what it used longest ago."""
        held = self.queues.state.fleet.held(runner)
        if runner.takes_jobs:
            size, value = self._size, self.worth.value
            return sorted(held, key=lambda h: (value(h, runner) / size(h, runner), h))
        return sorted(held, key=lambda h: (runner.used.get(h, -1), h))

    def _size(self, hint: Hint, runner: Runner) -> float:
        """Return how much of *runner* a model takes, or would take."""
        size, costs = _size(hint, runner, self.queues.state.costs), self.queues.state.costs
        squeezed = _is_squeezed(hint, size, runner, others=self.queues.runners, costs=costs)
        return max(_beside_pins(runner, hint, costs), 1.0) if squeezed else size

    def _own_turn(self, hint: Hint) -> float:
        """Return when *hint* is due if its only copy is here: it goes only to make room for what is due before."""
        if not self.queues.state.queue.count(hint) or len(self.queues.copies.get(hint, ())) > 1:
            return float("inf")
        return self.queues.execute_key(hint)


def outgrows(hint: Hint, runner: Runner, *, others: Iterable[Runner], costs: Costs) -> bool:
    """Return whether no room that *runner* could make is enough for *hint*, by what is known; not if it holds it."""
    size, limit = _size(hint, runner, costs), runner.caps.vram_bytes
    if limit is None or size <= limit or hint in (runner.hints or ()):
        return False
    return not _is_squeezed(hint, size, runner, others=others, costs=costs)


def pinned_out(runner: Runner, hint: Hint, costs: Costs) -> bool:
    """Return whether what is pinned on *runner* leaves no room there for *hint*, which it does not hold."""
    if not runner.pinned or hint in (runner.hints or ()) or hint in runner.loading or runner.executes(hint):
        return False
    free = _beside_pins(runner, hint, costs)
    known = runner.caps.vram_bytes is None or costs.size_bytes(hint) is not None
    size = _size(hint, runner, costs)
    return size > free if known and not _runs_in_part(size, runner) else free <= 0


def _beside_pins(runner: Runner, hint: Hint, costs: Costs) -> float:
    """Return what there is for *hint* once all has left that may: it may be pinned itself, and not be there yet."""
    return _limit(runner) - sum(_size(pinned, runner, costs) for pinned in runner.pinned - {hint})


def _limit(runner: Runner) -> float:
    """Return what fits: bytes where the runner counts bytes, else models; without a limit there is always room."""
    limit = runner.caps.vram_bytes if runner.caps.vram_bytes is not None else runner.caps.models_max
    return float("inf") if limit is None else float(limit)


def _cap(runner: Runner) -> float:
    """Return how many models there may be where `_limit` counts bytes."""
    models_max = runner.caps.models_max
    return float("inf") if runner.caps.vram_bytes is None or models_max is None else float(models_max)


def _size(hint: Hint, runner: Runner, costs: Costs) -> float:
    """Return what a model takes of what `_limit` counts, beside its base if that is there."""
    limit = runner.caps.vram_bytes
    if limit is None:
        return 1.0
    size = float(costs.size_bytes(hint) or 0)
    if not size:
        # One of unknown size is tried, also where the mean would not fit.
        pinned = sum(costs.size_bytes(other) or 0 for other in runner.pinned)
        size = min(costs.mean_size.value, max(float(limit - pinned), 1.0))
    base = runner.base(hint) if hint in (runner.hints or ()) else runner.kin(hint)
    if base is not None:
        return max(size - (costs.size_bytes(base) or size), 1.0)
    return size


def _is_squeezed(hint: Hint, size: float, runner: Runner, *, others: Iterable[Runner], costs: Costs) -> bool:
    """
    Return whether *runner* would empty its card for what it cannot hold whole: it can, and no other card does.

    A card whose pins leave no room for it is none that does.
    """
    if not _runs_in_part(size, runner):
        return False
    limits = ((other.caps.vram_bytes, other) for other in others)
    return not any((n is None or size <= n) and not pinned_out(other, hint, costs) for n, other in limits)


def _runs_in_part(size: float, runner: Runner) -> bool:
    """Return whether *runner* runs what is larger than its card: how, and beside what, it decides by itself."""
    return (runner.caps.vram_bytes or 0) < size <= (runner.caps.run_bytes or 0)
