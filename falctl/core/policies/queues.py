"""
Turns and backlogs: when each model is due, and for how long each runner is busy with what waits for it now.

All of it is estimated from the past (`falctl.core.costs`); how long a running job still takes is its expected time
less what has passed. Figures are kept until `refresh` is told that they changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from falctl.core.fleet import Runner
from falctl.core.policies.base import State
from falctl.core.policies.knobs import Knobs
from falctl.core.sources import Source
from falctl.core.types import Hint, RunnerId

LEAST_S: Final = 1e-6
"""An execution is taken to need at least this, so that it can be divided by."""
LATE_SHARE: Final = 0.1
"""A job that is late is taken to need this share of what it took so far."""


@dataclass(slots=True)
class Queues:
    """The queues at instant ``now``. ``copies``: by model, the runners that hold it or load it."""

    state: State
    knobs: Knobs
    copies: dict[Hint, list[Runner]]
    now: float
    runners: list[Runner]
    hintless: bool
    """Whether no runner gives hints."""
    mean_load_s: float
    """What a load of any model should take."""
    head_start_max_s: float
    """Nothing that is due so much later goes before, whatever it costs."""
    _exec: dict[Hint, float] = field(default_factory=dict)
    _keys: dict[Hint, float] = field(default_factory=dict)
    _load_keys: dict[Hint, float] = field(default_factory=dict)
    _nearest: dict[Hint, Source] = field(default_factory=dict)
    _others: dict[RunnerId, float] = field(default_factory=dict)
    _waiting_s: dict[RunnerId, float] = field(default_factory=dict)
    _backlog: dict[RunnerId, float] = field(default_factory=dict)

    def refresh(self, models: Iterable[Hint], runners: Iterable[RunnerId], *, now: float) -> None:
        """Compute anew what is asked about *models* and *runners*, at instant *now*."""
        self.now = now
        self._backlog.clear()
        for model in models:
            self._exec.pop(model, None)
            self._keys.pop(model, None)
            self._load_keys.pop(model, None)
            self._nearest.pop(model, None)
        for runner in runners:
            self._others.pop(runner, None)
            self._waiting_s.pop(runner, None)

    def forget_sources(self) -> None:
        """Look again where loads would come from."""
        self._nearest.clear()
        self._load_keys.clear()

    # --- turns -----------------------------------------------------------------------------------

    def exec_s(self, hint: Hint | None, runner: Runner | None = None) -> float:
        """Return what an execution should take on *runner*; None: on one of speed 1."""
        costs = self.state.costs
        if hint is None:
            return max(costs.mean_exec.value, LEAST_S)
        known = self._exec.get(hint)
        if known is None:
            known = self._exec[hint] = max(costs.exec_s(hint), LEAST_S)
        return known if runner is None else known * costs.speed(runner.card)

    def execute_key(self, hint: Hint | None, runner: Runner | None = None) -> float:
        """Return when *hint*, which somebody waits for, is due: short work has a head start."""
        if hint is not None and runner is None and (known := self._keys.get(hint)) is not None:
            return known
        key = self._due(hint) + min(self.knobs.head_start * self.exec_s(hint, runner), self.head_start_max_s)
        if hint is not None and runner is None:
            self._keys[hint] = key
        return key

    def scarce_key(self, hint: Hint | None, runner: Runner) -> float:
        """Return the same, later if other runners could run it, too, so that what only *runner* can run goes first."""
        copies = 0 if hint is None else len(self.copies.get(hint, ()))
        if copies < 2:
            return self.execute_key(hint, runner)
        steps_back_s = self.knobs.scarce * (copies - 1) * self.exec_s(hint)
        latest = self._due(hint) + self.head_start_max_s
        return min(self.execute_key(hint, runner) + steps_back_s, latest)

    def load_s(self, hint: Hint, runner: Runner | None = None) -> float:
        """Return what a load should take on *runner*, even if it holds it now; None: where that is least."""
        return self.load_from_s(hint, self.nearest(hint) if runner is None else runner.source(hint))

    def load_from_s(self, hint: Hint, source: Source) -> float:
        """Return the same from *source*; an app that gives no hints is taken to load nothing until it was seen to."""
        return (
            0.0
            if self.hintless and not self.state.costs.mean_load.n
            else self.state.costs.load_s(hint, source)
        )

    def nearest(self, hint: Hint) -> Source:
        """Return the cheapest source that any runner has for *hint*."""
        known = self._nearest.get(hint)
        if known is None:
            known = self._nearest[hint] = self._find_nearest(hint)
        return known

    def _find_nearest(self, hint: Hint) -> Source:
        found: Source = "disk"
        for runner in self.runners:
            source = runner.source(hint)
            if source == "base":
                return source
            if source == "ram":
                found = source
        return found

    def load_key(self, hint: Hint) -> float:
        """Return when *hint* is due if it has to be loaded first; never before its `execute_key`."""
        known = self._load_keys.get(hint)
        if known is None:
            knobs = self.knobs
            start_s = knobs.head_start * self.exec_s(hint) + knobs.load_head_start * self.load_s(hint)
            known = self._load_keys[hint] = self._due(hint) + min(start_s, self.head_start_max_s)
        return known

    def _due(self, hint: Hint | None) -> float:
        head = self.state.queue.head(hint)
        assert head is not None
        return head.due

    # --- backlogs --------------------------------------------------------------------------------

    def work_s(self, hint: Hint) -> float:
        """Return the seconds of waiting work for *hint* per copy."""
        waiting = self.state.queue.count_ahead(hint)
        return waiting * self.exec_s(hint) / max(len(self.copies.get(hint, ())), 1) if waiting else 0.0

    def backlog_s(self, runner: Runner) -> float:
        """Return the seconds until *runner* has drained what runs and what waits for it now."""
        known = self._backlog.get(runner.runner)
        if known is None:
            waits = self._waiting_s.get(runner.runner)
            if waits is None:
                speed = self.state.costs.speed(runner.card)
                waits = self._waiting_s[runner.runner] = speed * self._over_models(runner, self.work_s)
            known = self._backlog[runner.runner] = self.rest_s(runner) + waits / max(runner.slots, 1)
        return known

    def drained_s(self, hint: Hint) -> float:
        """Return the mean of that over those who hold *hint*."""
        holders = self.copies[hint]
        if len(holders) == 1:
            return self.backlog_s(holders[0])
        return sum(map(self.backlog_s, holders)) / len(holders)

    def others(self, runner: Runner, hint: Hint) -> float:
        """Return how many wait for the other models of *runner*, each model's share of its copies."""
        mine = hint in runner.loading or hint in self.state.fleet.held(runner)
        return self.all_waiting(runner) - self._per_copy(hint) if mine else self.all_waiting(runner)

    def spared(self, hint: Hint) -> float:
        """Return the mean of that over those who hold *hint*: who would wait less beside a copy of it elsewhere."""
        holders = self.copies[hint]
        return sum(map(self.all_waiting, holders)) / len(holders) - self._per_copy(hint)

    def all_waiting(self, runner: Runner) -> float:
        """Return how many wait for the models of *runner*, each model's share of its copies."""
        known = self._others.get(runner.runner)
        if known is None:
            known = self._others[runner.runner] = self._over_models(runner, self._per_copy)
        return known

    def _over_models(self, runner: Runner, figure: Callable[[Hint], float]) -> float:
        return sum(map(figure, self.state.fleet.held(runner))) + sum(map(figure, runner.loading))

    def _per_copy(self, hint: Hint) -> float:
        waiting = self.state.queue.count_ahead(hint)
        return waiting / len(self.copies[hint]) if waiting else 0.0

    def rest_s(self, runner: Runner) -> float:
        """Return for how long *runner* is still busy with what it has begun, all its slots together."""
        rest = 0.0
        for running in runner.in_use.values():
            expected = self.exec_s(running.hint, runner)
            if running.hint is not None and not running.warm and not runner.takes_jobs:
                expected += self.load_from_s(running.hint, running.source)
            rest += _remaining(expected, self.now - running.started_at)
        rest /= max(runner.slots, 1)
        if not runner.caps.overlaps:
            for hint, since in runner.loading.items():
                rest = max(
                    rest, _remaining(self.load_from_s(hint, runner.loads_from(hint)), self.now - since)
                )
        return rest


def queues_at(
    state: State, knobs: Knobs, copies: dict[Hint, list[Runner]], *, runners: list[Runner], now: float
) -> Queues:
    """Return the queues of *runners* at instant *now*."""
    hintless = all(runner.hints is None for runner in runners)
    load_s = 0.0 if hintless and not state.costs.mean_load.n else state.costs.mean_load.value
    longest_s = knobs.head_start_max * (max(state.costs.mean_exec.value, LEAST_S) + load_s)
    return Queues(state, knobs, copies, now, runners, hintless, load_s, longest_s)


def _remaining(expected_s: float, elapsed_s: float) -> float:
    return max(expected_s - elapsed_s, LATE_SHARE * elapsed_s, 0.0)
