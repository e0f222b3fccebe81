"""
What one decision of `auto` looks at: copies, backlogs, what copies are worth, and where there is room.

Everything is computed at most once per decision, and only if asked for. All of it is estimated from the past
(`falctl.core.costs`, `falctl.core.demand`); how long a running job still takes is its expected time less what has
passed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from falctl.core.demand import erlang_b
from falctl.core.fleet import Runner
from falctl.core.policies.base import State
from falctl.core.policies.knobs import Knobs
from falctl.core.types import Hint, RunnerId

LEAST_S: Final = 1e-6
"""An execution is taken to need at least this, so that it can be divided by."""
LATE_SHARE: Final = 0.1
"""A job that is late is taken to need this share of what it took so far."""


@dataclass(slots=True)
class Look:
    """The state at one instant. ``runners`` are those that take work."""

    state: State
    knobs: Knobs
    now: float
    runners: list[Runner]
    copies: dict[Hint, list[Runner]]
    """By model, the runners that hold it or load it."""
    horizon_s: float
    """For how long a copy counts on being useful."""
    _exec: dict[Hint, float] = field(default_factory=dict)
    _keys: dict[Hint, float] = field(default_factory=dict)
    _others: dict[RunnerId, float] = field(default_factory=dict)
    _backlog: dict[RunnerId, float] = field(default_factory=dict)
    _values: dict[Hint, float] = field(default_factory=dict)
    _evictable: dict[RunnerId, tuple[float, list[tuple[Hint, float, float]]]] = field(default_factory=dict)

    # --- queues ----------------------------------------------------------------------------------

    def exec_s(self, hint: Hint | None, card: str = "") -> float:
        """Return what an execution should take."""
        costs = self.state.costs
        if hint is None:
            return max(costs.mean_exec.value, LEAST_S)
        known = self._exec.get(hint)
        if known is None:
            known = self._exec[hint] = max(costs.exec_s(hint), LEAST_S)
        return known * costs.speed(card)

    def execute_key(self, hint: Hint | None, card: str = "") -> float:
        """Return when *hint*, which somebody waits for, is due: short work has a head start."""
        if hint is not None and not card and (known := self._keys.get(hint)) is not None:
            return known
        head = self.state.queue.head(hint)
        assert head is not None
        key = head.due + self.knobs.head_start * self.exec_s(hint, card)
        if hint is not None and not card:
            self._keys[hint] = key
        return key

    def load_key(self, hint: Hint) -> float:
        """Return the same for a model that has to be loaded first; never before its `execute_key`."""
        return self.execute_key(hint) + self.knobs.load_head_start * self.state.costs.load_s(hint)

    def work_s(self, hint: Hint) -> float:
        """Return the seconds of waiting work for *hint* per copy."""
        waiting = self.state.queue.count(hint)
        return waiting * self.exec_s(hint) / max(len(self.copies.get(hint, ())), 1) if waiting else 0.0

    def backlog_s(self, runner: Runner) -> float:
        """Return the seconds until *runner* has drained what runs and what waits for it now."""
        known = self._backlog.get(runner.runner)
        if known is None:
            known = self._rest_s(runner) + sum(map(self.work_s, (*(runner.hints or ()), *runner.loading)))
            self._backlog[runner.runner] = known
        return known

    def others(self, runner: Runner, hint: Hint) -> float:
        """Return how many wait for the other models of *runner*, each model's share of its copies."""
        known = self._others.get(runner.runner)
        if known is None:
            known = sum(map(self._per_copy, (*(runner.hints or ()), *runner.loading)))
            self._others[runner.runner] = known
        mine = hint in runner.loading or hint in (runner.hints or ())
        return known - self._per_copy(hint) if mine else known

    def _per_copy(self, hint: Hint) -> float:
        waiting = self.state.queue.count(hint)
        return waiting / len(self.copies[hint]) if waiting else 0.0

    def _rest_s(self, runner: Runner) -> float:
        costs, rest = self.state.costs, 0.0
        for running in runner.in_use.values():
            expected = self.exec_s(running.hint, runner.card)
            if running.hint is not None and not running.warm and not runner.caps.loads:
                expected += costs.load_s(running.hint)
            rest = max(rest, _remaining(expected, self.now - running.started_at))
        if not runner.caps.overlaps:
            for hint, since in runner.loading.items():
                rest = max(rest, _remaining(costs.load_s(hint), self.now - since))
        return rest

    # --- what copies are worth -------------------------------------------------------------------

    def copy_value(self, hint: Hint, copies: int) -> float:
        """Return the load seconds per second that the last of *copies* saves."""
        rate = self.state.demand.rate(hint)
        offered = self.knobs.burst * rate * self.exec_s(hint)
        return (
            rate * self.state.costs.load_s(hint) * (erlang_b(offered, copies - 1) - erlang_b(offered, copies))
        )

    def value(self, hint: Hint) -> float:
        """Return what one resident copy of *hint* is worth keeping for: load seconds per second."""
        known = self._values.get(hint)
        if known is None:
            copies = len(self.copies.get(hint, ()))
            known = self.copy_value(hint, max(copies, 1)) * (self.knobs.spare if copies > 1 else 1.0)
            self._values[hint] = known
        return known

    def price(self) -> float:
        """Return the request-seconds that a further copy must earn: more on a busy fleet, less if loads are short."""
        costs, knobs = self.state.costs, self.knobs
        exec_s, load_s = max(costs.mean_exec.value, LEAST_S), costs.mean_load.value
        busy = min(1.0, exec_s / max(self.state.demand.gap_s, 1e-9) / len(self.runners))
        short = min(1.0, load_s / exec_s)
        scale = math.pow(busy, knobs.busy_power) * math.pow(short, knobs.short_power)
        return knobs.locality * knobs.price * scale * load_s

    # --- room ------------------------------------------------------------------------------------

    def victims(
        self, runner: Runner, hint: Hint, key: float, *, keep: Hint | None = None
    ) -> tuple[tuple[Hint, ...], float] | None:
        """Return the cheapest set without *keep* that makes room for *hint*, and its value; None: no room now."""
        known = self._evictable.get(runner.runner)
        if known is None:
            known = self._evictable[runner.runner] = (self._room(runner), self._candidates(runner))
        free = known[0] - self._size(hint, runner)
        victims: list[Hint] = []
        loss = 0.0
        for victim, size, turn in known[1] if free < 0 else ():
            if turn <= key or victim == keep:
                continue
            victims.append(victim)
            loss += self.value(victim)
            free += size
            if free >= 0:
                break
        return (tuple(victims), loss) if free >= 0 else None

    def _candidates(self, runner: Runner) -> list[tuple[Hint, float, float]]:
        """Return what *runner* could evict, in order, with its size and when it is due itself."""
        running = {r.hint for r in runner.in_use.values()}
        return [
            (h, self._size(h, runner), self._own_turn(h)) for h in self._in_order(runner) if h not in running
        ]

    def _in_order(self, runner: Runner) -> list[Hint]:
        """Return what *runner* gives up, first to last: the least worth per byte, or what it used longest ago."""
        if runner.caps.loads:
            return sorted(runner.hints or (), key=lambda h: (self.value(h) / self._size(h, runner), h))
        return sorted(runner.hints or (), key=lambda h: (runner.used.get(h, -1), h))

    def _own_turn(self, hint: Hint) -> float:
        """Return when *hint* is due if its only copy is here: it goes only to make room for what is due before."""
        if not self.state.queue.count(hint) or len(self.copies.get(hint, ())) > 1:
            return float("inf")
        return self.execute_key(hint)

    def _room(self, runner: Runner) -> float:
        """Return what is free: bytes where the runner counts bytes, else models; without a limit there is room."""
        caps = runner.caps
        limit = caps.vram_bytes if caps.vram_bytes is not None else caps.models_max
        if limit is None:
            return float("inf")
        return limit - sum(self._size(h, runner) for h in (*(runner.hints or ()), *runner.loading))

    def _size(self, hint: Hint, runner: Runner) -> float:
        if runner.caps.vram_bytes is None:
            return 1.0
        costs = self.state.costs
        return float(costs.size_bytes(hint) or costs.mean_size.value)


def look_at(state: State, knobs: Knobs, *, now: float) -> Look:
    """Return what is known at instant *now*."""
    runners = [r for r in state.fleet.runners.values() if r.accepting]
    copies: dict[Hint, list[Runner]] = {}
    slots = 0.0
    for runner in runners:
        for hint in (*(runner.hints or ()), *runner.loading):
            copies.setdefault(hint, []).append(runner)
        slots += _capacity(runner, state)
    return Look(state, knobs, now, runners, copies, knobs.horizon * slots * (state.demand.gap_s or 1.0))


def _remaining(expected_s: float, elapsed_s: float) -> float:
    return max(expected_s - elapsed_s, LATE_SHARE * elapsed_s, 0.0)


def _capacity(runner: Runner, state: State) -> float:
    """Return how many models of mean size fit the runner."""
    if runner.caps.vram_bytes is not None:
        return runner.caps.vram_bytes / state.costs.mean_size.value
    return float(runner.caps.models_max or max(len(runner.hints or ()), 1))
