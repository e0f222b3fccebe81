"""
What `auto` looks at: the runners that take work, the queues, what copies are worth, and where there is room.

A look is carried over from event to event, because most of them change one queue and one runner. It is made anew
when something else has changed, and once in `FRESH_S`, so that slow drifts (demand, costs, values) are taken in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from falctl.core.fleet import Runner
from falctl.core.policies.base import Changes, State
from falctl.core.policies.knobs import Knobs
from falctl.core.policies.queues import Queues, queues_at
from falctl.core.policies.room import Room
from falctl.core.policies.worth import Worth, worth_at
from falctl.core.sources import Source
from falctl.core.types import Hint, RunnerId

FRESH_S: Final = 1.0
OVERDUE: Final = 5.0
"""A load that has taken so many times as long as it should is not waited for if a copy elsewhere pays."""
KNOWN_S: Final = 1.0
STRANGE_S: Final = 60.0
"""What it should take is at least this; the latter where its model was never seen to be loaded: what others took says
little of one that may be a hundred times larger, and a second load of it would make both slower."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A move that could be made, and when it is due; a load, or an execution."""

    key: float
    runner: Runner
    hint: Hint | None
    reason: str
    evict: tuple[Hint, ...] = ()
    loads: bool = False


@dataclass(frozen=True, slots=True)
class Reservation:
    """A runner that takes no more executions that are due at ``key`` or later."""

    runner: Runner
    key: float

    def keeps_off(self, runner: Runner, key: float) -> bool:
        """Return whether an execution that is due at *key* has to leave *runner* alone."""
        return runner is self.runner and key >= self.key


@dataclass(slots=True)
class Look:
    """See the module. ``copies``: by model, the runners that hold it or load it."""

    state: State
    knobs: Knobs
    made_at: float
    runners: list[Runner]
    copies: dict[Hint, list[Runner]]
    queues: Queues
    worth: Worth
    room: Room
    overlaps: bool
    """Whether every runner can load beside an execution."""
    many_slots: bool
    """Whether any runner has more than one."""
    _models: dict[RunnerId, frozenset[Hint]]
    """What each runner holds or loads: the same as ``copies``."""
    _everything: bool = True
    """Whether any model may be worth a load anywhere; else only the models and the runners that changed."""
    _hints: set[Hint] = field(default_factory=set)
    _runners: set[RunnerId] = field(default_factory=set)

    def refresh(self, changes: Changes, *, now: float) -> None:
        """Take in what has changed since, up to instant *now*."""
        ours = changes.runners & self._models.keys()  # one that drains still ends what it runs
        models = changes.models.union(*map(self._recount, ours))
        runners = ours.union(r.runner for m in models for r in self.copies.get(m, ()))
        for model in changes.moved:
            self.worth.forget(model)
        self.queues.refresh(models, runners, now=now)
        self.room.forget(runners)
        self._hints |= changes.wanted
        self._runners |= ours

    def _recount(self, number: RunnerId) -> frozenset[Hint]:
        """Take in what a runner holds now; return the models of which there is a copy more or less."""
        runner, before = self.state.fleet.runners[number], self._models[number]
        after = self._models[number] = frozenset((*self.state.fleet.held(runner), *runner.loading))
        for model in before - after:
            self.copies[model].remove(runner)
            if not self.copies[model]:
                del self.copies[model]
            self._hints.add(model)
        for model in after - before:
            holders = self.copies.setdefault(model, [])
            holders.append(runner)
            self._runners.update(r.runner for r in holders)  # the others' copies may go now
        for model in before ^ after:
            self.worth.forget(model)
        if runner.caps.joint:
            self.queues.forget_sources()  # what has come or gone here may be the base of anything
            self.worth.forget_all()
        return before ^ after

    def settle(self) -> None:
        """Note that nothing is worth doing now: only what changes from here on can be."""
        self._everything = False
        self._hints.clear()
        self._runners.clear()

    def coming(self) -> set[Hint]:
        """Return what is being loaded: as a job that is not far beyond its time, or by a runner for a cold execution."""
        coming: set[Hint] = set()
        for runner in self.runners:
            for hint, since in runner.loading.items():
                if not self._is_late(hint, runner.loads_from(hint), self.queues.now - since):
                    coming.add(hint)
            if runner.hints is not None:
                for running in runner.in_use.values():
                    if not running.warm and running.hint is not None:
                        coming.add(running.hint)
        return coming

    def _is_late(self, hint: Hint, source: Source, spent_s: float) -> bool:
        """Return whether a load that has taken *spent_s* is far beyond its time; most are told by their age alone."""
        if spent_s <= OVERDUE * KNOWN_S or spent_s <= OVERDUE * self.queues.load_from_s(hint, source):
            return False
        costs = self.state.costs
        strange = costs.learnt_load_s(hint, source) is None and costs.learnt_load_s(hint) is None
        return not strange or spent_s > OVERDUE * STRANGE_S

    def to_load(self, runners: list[Runner]) -> Iterator[tuple[Iterable[Hint | None], list[Runner]]]:
        """Iterate over models that wait, and those of *runners* on which a load of them may have become worthwhile."""
        waiting = self.state.queue
        if self._everything:
            yield waiting.hints(), runners
            return
        yield [h for h in self._hints if waiting.count(h)], runners
        if changed := [r for r in runners if r.runner in self._runners]:
            yield (h for h in waiting.hints() if h not in self._hints), changed


def look_at(state: State, knobs: Knobs, *, now: float) -> Look:
    """Return what is known at instant *now*."""
    runners = [r for r in state.fleet.runners.values() if r.accepting]
    models = {r.runner: frozenset((*state.fleet.held(r), *r.loading)) for r in runners}
    copies: dict[Hint, list[Runner]] = {}
    for runner in runners:
        for model in models[runner.runner]:
            copies.setdefault(model, []).append(runner)
    queues = queues_at(state, knobs, copies, runners=runners, now=now)
    worth = worth_at(queues, runners)
    room = Room(queues, worth)
    overlaps = all(runner.caps.overlaps for runner in runners)
    many_slots = any(runner.slots > 1 for runner in runners)
    return Look(state, knobs, now, runners, copies, queues, worth, room, overlaps, many_slots, models)
