"""
Runners on a virtual clock, driven by the real scheduler.

One execution per slot, one load per runner at a time. A load job may run beside an execution if the world says so
(*overlaps*). A request that is dispatched cold loads first, in its slot, and the runner evicts what it used least
recently, as an app that knows no load jobs does. Nothing here tells the scheduler what is to come.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from falctl.core.events import Arrived, Dispatch, Event, HintsChanged, Load, LoadEnded, Refuse, Released, RunnerUp
from falctl.core.policies.base import Policy
from falctl.core.scheduler import Scheduler
from falctl.core.types import Caps, Epoch, Hint, RequestId, RunnerId, Wanted
from falctl.replay.trace import Job

FIRST = Epoch(1)


@dataclass(frozen=True, slots=True)
class Setting:
    """The simulated fleet. Exactly one of ``models_max`` and ``vram_bytes`` is a limit."""

    runners: int
    models_max: int | None = 3
    vram_bytes: int | None = None
    loads: bool = True
    """Runners take load jobs; else they load and evict by themselves, as apps that only give hints do."""
    overlaps: bool = True
    overlap_slowdown: float = 0.0
    """By how much an execution takes longer for each second that a load runs beside it."""


@dataclass(slots=True)
class Card:
    """One runner's truth: what is resident, by last use."""

    resident: dict[Hint, float] = field(default_factory=dict)
    executing: Hint | None = None


@dataclass(slots=True)
class Outcome:
    """What happened to a trace: seconds by request, in its order."""

    latency_s: list[float]
    started_s: list[float]
    loads: list[tuple[float, Hint, float]] = field(default_factory=list)
    refused: int = 0


class World:
    """Plays *jobs* through *policy*."""

    def __init__(self, jobs: list[Job], policy: Policy, setting: Setting) -> None:
        self.jobs = jobs
        self.setting = setting
        self.now = 0.0
        self.scheduler = Scheduler(policy, queue_max=len(jobs) + 1)
        self.cards = [Card() for _ in range(setting.runners)]
        self.outcome = Outcome([0.0] * len(jobs), [0.0] * len(jobs))
        self._truth = {job.hint: job for job in jobs}
        self._events: list[tuple[float, int, Callable[[], Event]]] = []
        self._n = 0

    def run(self, progress: Callable[[int], None] | None = None) -> Outcome:
        """Play to the end; *progress* is told the number of arrivals now and then."""
        caps = Caps(
            gpu="simulated",
            loads=self.setting.loads,
            overlaps=self.setting.overlaps,
            models_max=self.setting.models_max,
            vram_bytes=self.setting.vram_bytes,
        )
        self.now = self.jobs[0].t_s
        for runner in range(self.setting.runners):
            self._feed(RunnerUp(RunnerId(runner), FIRST, 1, (), frozenset(), caps))
        for index, job in enumerate(self.jobs):
            while self._events and self._events[0][0] < job.t_s:
                self._next()
            self.now = job.t_s
            size = job.size_bytes or None
            wanted = Wanted(job.hint, "header")
            self._feed(Arrived(RequestId(str(index)), wanted, job.client, size_bytes=size))
            if progress is not None and index % 256 == 0:
                progress(index)
        while self._events:
            self._next()
        return self.outcome

    def _next(self) -> None:
        self.now, _, make = heapq.heappop(self._events)
        self._feed(make())

    def _at(self, when: float, make: Callable[[], Event]) -> None:
        self._n += 1
        heapq.heappush(self._events, (when, self._n, make))

    def _feed(self, event: Event) -> None:
        for action in self.scheduler.handle(event, now=self.now):
            match action:
                case Dispatch(request, runner):
                    self._execute(int(request), runner)
                case Load(runner, _, hint, evict):
                    self._load(runner, hint, evict)
                case Refuse():
                    self.outcome.refused += 1

    def _execute(self, index: int, runner: RunnerId) -> None:
        card, job = self.cards[runner], self.jobs[index]
        assert card.executing is None, "two executions on one card"
        card.executing = job.hint
        load_s = 0.0
        if job.hint not in card.resident:
            load_s = job.load_s
            self._make_room(card, job.hint)
            self.outcome.loads.append((self.now, job.hint, load_s))
        card.resident.pop(job.hint, None)
        card.resident[job.hint] = self.now
        self.outcome.started_s[index] = self.now
        self._at(self.now + load_s + job.exec_s, lambda: self._executed(index, runner, load_s))

    def _executed(self, index: int, runner: RunnerId, load_s: float) -> Event:
        card, job = self.cards[runner], self.jobs[index]
        card.executing = None
        self.outcome.latency_s[index] = self.now - job.t_s
        if load_s:
            self._feed(HintsChanged(runner, FIRST, frozenset(card.resident)))
        both_s = None if not self.setting.loads else load_s
        exec_s = job.exec_s if self.setting.loads else job.exec_s + load_s
        return Released(RequestId(str(index)), runner, FIRST, exec_s, both_s)

    def _load(self, runner: RunnerId, hint: Hint, evict: tuple[Hint, ...]) -> None:
        card, truth = self.cards[runner], self._truth[hint]
        for victim in evict:
            assert victim != card.executing, "a victim executes"
            del card.resident[victim]
        assert self._used(card) + self._size(hint) <= self._limit() + 1e-6, "over the budget"
        assert self.setting.overlaps or card.executing is None, "a load beside an execution"
        card.resident[hint] = self.now
        self.outcome.loads.append((self.now, hint, truth.load_s))
        self._at(self.now + truth.load_s, lambda: LoadEnded(runner, FIRST, hint, ok=True, load_s=truth.load_s))

    def _make_room(self, card: Card, hint: Hint) -> None:
        """Evict the least recently used, as an app on its own would."""
        for victim in list(card.resident):
            if self._used(card) + self._size(hint) <= self._limit():
                return
            del card.resident[victim]

    def _limit(self) -> float:
        limit = self.setting.vram_bytes if self.setting.vram_bytes is not None else self.setting.models_max
        return float("inf") if limit is None else float(limit)

    def _size(self, hint: Hint) -> float:
        return float(self._truth[hint].size_bytes) if self.setting.vram_bytes is not None else 1.0

    def _used(self, card: Card) -> float:
        return sum(self._size(hint) for hint in card.resident)
