"""
Runners on a virtual clock, driven by the real scheduler.

One execution per slot, one load per runner at a time. A load job may run beside an execution if the world says so
(*overlaps*). A request that is dispatched cold loads first, in its slot, and the runner evicts what it used least
recently, as an app that knows no load jobs does. Nothing here tells the scheduler what is to come.

A policy of one's own may have two attributes more than `falctl.core.policies.base.Policy` asks for:

- ``tick_s``: it holds by the clock, so while anything waits it is asked at least this often (seconds).
- ``foresee(jobs)``: it is a baseline that may know the truth, and is given the whole trace before the start; the
  request id of ``jobs[i]`` is ``str(i)``.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from falctl.core.events import (
    Arrived,
    Dispatch,
    Event,
    HintsChanged,
    Load,
    LoadEnded,
    Refuse,
    Released,
    RunnerUp,
    TellWish,
    Tick,
)
from falctl.core.policies.base import Policy
from falctl.core.scheduler import Scheduler
from falctl.core.sources import Stock, Tier
from falctl.core.types import Caps, Epoch, Hint, RequestId, RunnerId, Wanted
from falctl.errors import StartError
from falctl.replay.ram import HostRam
from falctl.replay.trace import Job

FIRST = Epoch(1)

_EXECUTION, _LOAD, _TICK = range(3)
"""What ends at one instant ends in this order, so that a replay does not hang on the order of a heap."""

PATIENCE_S: Final = 3600.0
"""A policy that holds by the clock is asked for so long while nothing else happens; then it holds for ever."""


@dataclass(frozen=True, slots=True)
class Setting:
    """The simulated fleet. Bytes are the limit where they are given, else ``models_max``."""

    runners: int
    models_max: int | None = 3
    vram_bytes: int | None = None
    vram_each: tuple[int, ...] = ()
    """The same by runner, where cards are unequal; instead of ``vram_bytes``."""
    loads: bool = True
    """Runners take load jobs; else they load and evict by themselves, as apps that only give hints do."""
    overlaps: bool = True
    overlap_slowdown: float = 0.0
    """How much longer an execution takes while a load runs beside it: 0.2 is 1.2 times as long."""
    ram: float = 0.0
    """What host memory holds, in what a runner's limit counts: bytes or models; shared by all runners."""
    ram_load: float = 0.1
    """A load from there takes this share of one from disk, where the trace does not say."""
    tells_tiers: bool = True
    """The scheduler hears what is in host memory and where each load came from; else it sees only how long it took."""
    slower: tuple[tuple[float, int, float], ...] = ()
    """From this instant on, executions that begin on this runner take so many times as long; the last that applies does."""

    def vram(self, runner: int) -> int | None:
        """Return how many bytes *runner* holds; None: models are counted, not bytes."""
        return self.vram_each[runner] if self.vram_each else self.vram_bytes

    def slowness(self, runner: int, now: float) -> float:
        """Return how many times as long an execution takes that begins on *runner* now."""
        return next((f for at, who, f in reversed(self.slower) if who == runner and at <= now), 1.0)


@dataclass(slots=True)
class Card:
    """One runner's truth: what it can hold, in bytes or models, and what is resident, by last use."""

    limit: float
    resident: dict[Hint, float] = field(default_factory=dict)
    executing: RequestId | None = None
    loading: Hint | None = None
    loads_until: float = 0.0
    cold_s: float | None = None
    """What the execution had to load first, in its slot; None: it was warm."""
    tier: Tier = "disk"
    """Where it loads that from, or the load job under way."""
    ends_at: float = 0.0
    turn: int = 0
    """Counts the announced ends of executions: a load beside one moves its end and makes the older news void."""


@dataclass(slots=True)
class Outcome:
    """What happened to a trace: by request, in its order."""

    latency_s: list[float]
    started_s: list[float]
    """Instants at which the executions proper began, after the load of a request that was dispatched cold."""
    loads: list[tuple[float, Hint, float]] = field(default_factory=list)
    ram_loads: int = 0
    """How many of those came from host memory."""
    refused: int = 0


class World:
    """Plays *jobs*, which are in order of time, through *policy*; *check* its every invariant after every event."""

    def __init__(self, jobs: Sequence[Job], policy: Policy, setting: Setting, *, check: bool = False) -> None:
        self.jobs = jobs
        self._check = check
        self.setting = setting
        self.now = 0.0
        self.scheduler = Scheduler(policy, queue_max=len(jobs) + 1)
        self.cards = [Card(_limit(setting, runner)) for runner in range(setting.runners)]
        self.outcome = Outcome([0.0] * len(jobs), [0.0] * len(jobs))
        self._size_bytes = sizes_of(jobs)
        self.ram = HostRam(setting.ram, self._size)
        self._latest: dict[Hint, Job] = {}
        """The latest arrival of each model: what a load would take now is what its row says."""
        self._served = 0
        self._tick_s: float = getattr(policy, "tick_s", 0.0)
        self._ticks = False
        self._idle_ticks = 0
        self._events: list[tuple[float, int, int, int, Callable[[], Event | None]]] = []
        self._n = 0
        if (foresee := getattr(policy, "foresee", None)) is not None:
            foresee(jobs)

    def run(self, progress: Callable[[int], None] | None = None) -> Outcome:
        """
        Play to the end; *progress* is told the number of arrivals now and then.

        Raises:
            StartError: the policy lets requests wait for ever.
        """
        self.now = self.jobs[0].t_s
        for runner in range(self.setting.runners):
            self._feed(RunnerUp(RunnerId(runner), FIRST, 1, (), frozenset(), self._caps(runner)))
        for index, job in enumerate(self.jobs):
            while self._events and self._events[0][0] < job.t_s:
                self._next()
            self.now = job.t_s
            self._latest[job.hint] = job
            wanted = Wanted(job.hint, "header") if job.hint else None
            size = self._size_bytes[job.hint] or None
            self._feed(Arrived(RequestId(str(index)), wanted, job.client, size_bytes=size))
            if progress is not None and index % 256 == 0:
                progress(index)
        while self._events:
            self._next()
        if lost := len(self.jobs) - self._served - self.outcome.refused:
            msg = f"the policy lets {lost} of {len(self.jobs)} requests wait for ever"
            raise StartError(msg)
        return self.outcome

    def _caps(self, runner: int) -> Caps:
        setting = self.setting
        return Caps("simulated", setting.loads, setting.overlaps, setting.models_max, setting.vram(runner))

    def _next(self) -> None:
        self.now, *_, make = heapq.heappop(self._events)
        if (event := make()) is not None:
            self._feed(event)

    def _at(self, when: float, rank: tuple[int, int], make: Callable[[], Event | None]) -> None:
        """Let *make* happen; at one instant in order of *rank*: what kind, which runner."""
        self._n += 1
        heapq.heappush(self._events, (when, *rank, self._n, make))

    def _feed(self, event: Event) -> None:
        for action in self.scheduler.handle(event, now=self.now):
            match action:
                case Dispatch(request, runner):
                    self._execute(request, runner)
                case Load(runner, _, hint, evict):
                    self._load(runner, hint, evict)
                case Refuse():
                    self.outcome.refused += 1
                case TellWish():
                    pass  # a trace wishes for nothing
        if self._check:
            self.scheduler.check()
        self._idle_ticks = self._idle_ticks + 1 if isinstance(event, Tick) else 0
        patient = self._idle_ticks * self._tick_s < PATIENCE_S
        if self._tick_s and patient and not self._ticks and self.scheduler.state.queue:
            self._ticks = True
            self._at(self.now + self._tick_s, (_TICK, 0), self._ticked)

    def _ticked(self) -> Event:
        self._ticks = False
        return Tick()

    def _execute(self, request: RequestId, runner: RunnerId) -> None:
        card, job = self.cards[runner], self.jobs[int(request)]
        assert card.executing is None, "two executions on one card"
        assert card.loading is None or self.setting.overlaps, "an execution beside a load"
        assert card.loading is None or card.loading != job.hint, (
            "an execution of a model that is still loading"
        )
        card.executing = request
        load_s = None
        if job.hint and job.hint not in card.resident:
            assert card.loading is None, "two loads on one card"
            self._make_room(card, job.hint)
            load_s = self._begin_load(card, job)
        if job.hint:
            self.ram.use(job.hint)
            card.resident.pop(job.hint, None)
            card.resident[job.hint] = self.now
        self.outcome.started_s[int(request)] = self.now + (load_s or 0.0)
        card.cold_s = load_s
        work_s = job.exec_s * self.setting.slowness(runner, self.now)
        self._end_at(runner, self.now + (load_s or 0.0) + self._beside_s(work_s, card))

    def _end_at(self, runner: RunnerId, when: float) -> None:
        """Announce the end of the execution on *runner*; an earlier announcement is void."""
        card = self.cards[runner]
        card.ends_at, card.turn = when, card.turn + 1
        turn = card.turn
        self._at(when, (_EXECUTION, runner), lambda: self._executed(runner) if card.turn == turn else None)

    def _beside_s(self, work_s: float, card: Card) -> float:
        """Return how long *work_s* seconds of execution take from now on, with the load that runs beside them."""
        slow, load_s = 1.0 + self.setting.overlap_slowdown, max(card.loads_until - self.now, 0.0)
        return work_s * slow if work_s * slow <= load_s else load_s + work_s - load_s / slow

    def _executed(self, runner: RunnerId) -> Event:
        card = self.cards[runner]
        request, load_s = card.executing, card.cold_s
        assert request is not None
        job = self.jobs[int(request)]
        card.executing = None
        stretched = self.setting.overlap_slowdown > 0 or bool(self.setting.slower)
        exec_s = self.now - self.outcome.started_s[int(request)] if stretched else job.exec_s
        self._served += 1
        self.outcome.latency_s[int(request)] = self.now - job.t_s
        if load_s is not None:
            self._take_in(job.hint)
            self._feed(HintsChanged(runner, FIRST, frozenset(card.resident)))
        if not self.setting.loads:
            return Released(request, runner, FIRST, exec_s + (load_s or 0.0), None)
        return Released(request, runner, FIRST, exec_s, load_s or 0.0, self._told(card))

    def _load(self, runner: RunnerId, hint: Hint, evict: tuple[Hint, ...]) -> None:
        card = self.cards[runner]
        assert card.loading is None, "two loads on one card"
        assert self.setting.overlaps or card.executing is None, "a load beside an execution"
        for victim in evict:
            assert card.executing is None or victim != self.jobs[int(card.executing)].hint, (
                "a victim executes"
            )
            del card.resident[victim]
        assert self._used(card) + self._size(hint) <= card.limit, "over the budget"
        card.resident[hint], card.loading = self.now, hint
        load_s = self._begin_load(card, self._latest[hint])
        card.loads_until = self.now + load_s
        if card.executing is not None and self.setting.overlap_slowdown:
            self._end_at(runner, self.now + self._beside_s(card.ends_at - self.now, card))
        self._at(self.now + load_s, (_LOAD, runner), lambda: self._loaded(runner, hint, load_s))

    def _loaded(self, runner: RunnerId, hint: Hint, load_s: float) -> Event:
        card = self.cards[runner]
        card.loading = None
        self._take_in(hint)
        return LoadEnded(runner, FIRST, hint, ok=True, load_s=load_s, tier=self._told(card))

    def _begin_load(self, card: Card, job: Job) -> float:
        """Return how long a load of *job*'s model takes that begins now."""
        load_s, card.tier = job.load_s, "disk"
        if job.hint in self.ram:
            card.tier = "ram"
            load_s = job.load_s * self.setting.ram_load if job.ram_load_s is None else job.ram_load_s
            self.outcome.ram_loads += 1
            self.ram.use(job.hint)
        self.outcome.loads.append((self.now, job.hint, load_s))
        return load_s

    def _take_in(self, hint: Hint) -> None:
        """Keep the bytes of *hint*, which has been loaded, in host memory, and have every runner tell of that."""
        telling = (
            self.setting.loads and self.setting.tells_tiers
        )  # an app that only gives hints tells nothing of tiers
        if self.ram.put(hint) and telling:
            stock = Stock(self.ram.held)
            for number, view in tuple(self.scheduler.fleet.runners.items()):
                self._feed(HintsChanged(number, FIRST, view.hints, stock))

    def _told(self, card: Card) -> Tier:
        """Return where *card* says that its load came from."""
        return card.tier if self.setting.tells_tiers else "disk"

    def _make_room(self, card: Card, hint: Hint) -> None:
        """Evict the least recently used, as an app on its own would."""
        for victim in list(card.resident):
            if self._used(card) + self._size(hint) <= card.limit:
                break
            del card.resident[victim]
        assert self._used(card) + self._size(hint) <= card.limit, "over the budget"

    def _size(self, hint: Hint) -> float:
        return float(self._size_bytes[hint]) if self.setting.vram(0) is not None else 1.0

    def _used(self, card: Card) -> float:
        return sum(self._size(hint) for hint in card.resident)


def _limit(setting: Setting, runner: int) -> float:
    vram_bytes = setting.vram(runner)
    limit = vram_bytes if vram_bytes is not None else setting.models_max
    return float("inf") if limit is None else float(limit)


def sizes_of(jobs: Iterable[Job]) -> dict[Hint, int]:
    """Return the bytes of every model: the most that any row says."""
    sizes: dict[Hint, int] = {}
    for job in jobs:
        sizes[job.hint] = max(sizes.get(job.hint, 0), job.size_bytes)
    return sizes
