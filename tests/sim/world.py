"""
A fleet in virtual time: the real Scheduler and the real Lives against simulated hosts and clients.

The hosts are the adversary: they load and evict models, take their time, die in mid-request, hang until they are
killed, lose their event stream, and hold slots that a dead router gave away. What is checked after every event:

- every request is answered exactly once, and nobody is forgotten at the end;
- a host never runs more than its slots, whatever the router believes;
- the invariants of `Scheduler.check`;
- (affinity) no waiting hit beside a free warm slot, and nobody is passed by a younger one beyond the bound.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from dataclasses import dataclass, field
from random import Random

from falctl.core.events import (
    Arrived,
    Bounced,
    Cancelled,
    Dispatch,
    Event,
    HintsChanged,
    Load,
    Refuse,
    Released,
    RunnerDown,
    RunnerUp,
    TellWish,
)
from falctl.core.events import Tick as SchedulerTick
from falctl.core.lifecycle import BecameReady, Begin, Exited, Kill, Life, LifeLimits, Spawn, Vitals, Watched
from falctl.core.lifecycle import Event as LifeEvent
from falctl.core.lifecycle import Tick as LifeTick
from falctl.core.policies import make_policy
from falctl.core.scheduler import Scheduler
from falctl.core.types import Epoch, Hint, RequestId, RunnerId, Wanted

HOLD_S = 10.0
BYPASS_MAX_S = 30.0
TICK_S = 0.5
LIMITS = LifeLimits(600.0, 300.0, 20.0, 1000, 600.0, 1.0, 8.0)


@dataclass
class Host:
    """One simulated runner process: slots, an LRU of models, and the moods of its seed."""

    epoch: Epoch
    slots: int
    hints: list[Hint] | None
    running: dict[RequestId, float] = field(default_factory=dict)
    hangs: bool = False
    up: bool = False


class World:
    """One history. ``answers`` counts how often each request was answered, ``fate`` says how."""

    def __init__(self, seed: int, *, policy: str) -> None:
        self.rng = Random(seed)
        self.policy = policy
        self.now = 0.0
        self._order = itertools.count()
        self._queue: list[tuple[float, int, object, tuple[object, ...]]] = []
        self.scheduler = Scheduler(
            make_policy(policy, hold_s=HOLD_S, bypass_max_s=BYPASS_MAX_S), queue_max=80, client_max=60
        )
        self.gives_hints = self.rng.random() < 0.8
        self.capacity = self.rng.randint(1, 3)
        self.trouble = self.rng.choice((0.0, 0.0, 0.02, 0.1))
        runners = [RunnerId(i) for i in range(self.rng.randint(1, 4))]
        slots = self.rng.randint(1, 3)
        self.lives = {r: Life(LIMITS) for r in runners}
        self.hosts: dict[RunnerId, Host] = {}
        self.slots = slots
        self.wanted: dict[RequestId, Wanted | None] = {}
        self.arrived: dict[RequestId, float] = {}
        self.answers: Counter[RequestId] = Counter()
        self.fate: dict[RequestId, str] = {}
        self.loads = 0
        self.bypass_max_s = 0.0

    # --- the run ---------------------------------------------------------------------------------

    def run(self, requests: int, *, over_s: float) -> None:
        """Let *requests* arrive over *over_s* seconds and play until everything is answered."""
        models = [Hint(f"m{i}") for i in range(self.rng.randint(1, 8))]
        for runner in self.lives:
            self.feed(RunnerDown(runner, returns=True))
            self.live(runner, Begin())
        for n in range(requests):
            request = RequestId(f"q{n}")
            model = self.rng.choice(models)
            self.wanted[request] = None if self.rng.random() < 0.1 else Wanted(model, "header")
            self.at(self.rng.uniform(0, over_s), self.arrive, request)
        self.at(0.0, self.tick, over_s + 2000.0)
        while self._queue:
            self.now, _, call, arguments = heapq.heappop(self._queue)
            call(*arguments)  # type: ignore[operator]
            self.check()
        assert self.answers.keys() == self.wanted.keys(), "a request was forgotten"

    def at(self, when: float, call: object, *arguments: object) -> None:
        heapq.heappush(self._queue, (when, next(self._order), call, arguments))

    def check(self) -> None:
        self.scheduler.check()
        assert all(n == 1 for n in self.answers.values()), "answered twice"
        for runner, host in self.hosts.items():
            assert len(host.running) <= host.slots, f"runner {runner} runs more than its slots"
        if self.policy == "affinity":
            fleet = self.scheduler.state.fleet
            for waiting in self.scheduler.state.queue.heads():
                for free in fleet.free():
                    assert waiting.hint is not None, "a request without a hint waits beside a free slot"
                    assert not fleet.warm(waiting.hint, free), "a hit waits beside a free warm slot"

    # --- the scheduler and what it asks for --------------------------------------------------------

    def feed(self, event: Event) -> None:
        for action in self.scheduler.handle(event, now=self.now):
            match action:
                case Dispatch():
                    self.note_bypass(action)
                    self.at(self.now + 0.001, self.reach, action)
                case Refuse(request, code):
                    self.answer(request, code)
                case TellWish():
                    raise AssertionError(action)
                case Load():
                    msg = "these hosts load by themselves"
                    raise AssertionError(msg)

    def note_bypass(self, dispatch: Dispatch) -> None:
        came = self.arrived[dispatch.request]
        for waiting in self.scheduler.state.queue:
            if waiting.arrived_at < came and waiting.attempts == 0:
                self.bypass_max_s = max(self.bypass_max_s, self.now - waiting.arrived_at)

    def answer(self, request: RequestId, how: str) -> None:
        self.answers[request] += 1
        self.fate[request] = how

    def arrive(self, request: RequestId) -> None:
        self.arrived[request] = self.now
        client = "greedy" if int(request[1:]) % 4 else "modest"
        self.feed(Arrived(request, self.wanted[request], client))
        if request not in self.answers and self.rng.random() < 0.05:
            self.at(self.now + self.rng.expovariate(0.1), self.leave, request)

    def leave(self, request: RequestId) -> None:
        if request in self.scheduler.state.queue:
            self.answer(request, "left")
        self.feed(Cancelled(request))

    # --- hosts -----------------------------------------------------------------------------------

    def reach(self, dispatch: Dispatch) -> None:
        """A dispatched request arrives at its host, if that incarnation still lives."""
        host = self.hosts.get(dispatch.runner)
        if host is None or host.epoch != dispatch.epoch:
            self.answer(dispatch.request, "runner_lost")
            self.feed(Released(dispatch.request, dispatch.runner, dispatch.epoch))
        elif len(host.running) >= host.slots:
            self.feed(Bounced(dispatch.request, dispatch.runner, dispatch.epoch))
            self.at(self.now + 1.0, self.hello, dispatch.runner, host.epoch)
        else:
            host.running[dispatch.request] = self.now
            if self.rng.random() < self.trouble:
                self.misfortune(dispatch.runner, host)
            if not host.hangs:
                self.at(self.now + self.cost(host, dispatch.request), self.finish, dispatch)

    def cost(self, host: Host, request: RequestId) -> float:
        wanted = self.wanted[request]
        warm = wanted is None or host.hints is None or wanted.hint in host.hints
        self.loads += not warm
        return self.rng.expovariate(0.5) + (0.0 if warm else self.rng.uniform(2, 12))

    def finish(self, dispatch: Dispatch) -> None:
        host = self.hosts.get(dispatch.runner)
        if host is None or host.epoch != dispatch.epoch or dispatch.request not in host.running or host.hangs:
            return
        del host.running[dispatch.request]
        wanted = self.wanted[dispatch.request]
        if host.hints is not None and wanted is not None:
            host.hints = [wanted.hint, *(h for h in host.hints if h != wanted.hint)][: self.capacity]
            self.feed(HintsChanged(dispatch.runner, dispatch.epoch, frozenset(host.hints)))
        self.answer(dispatch.request, "served")
        self.feed(Released(dispatch.request, dispatch.runner, dispatch.epoch))
        if self.rng.random() < 0.3:
            self.feed(Released(dispatch.request, dispatch.runner, dispatch.epoch))

    def misfortune(self, runner: RunnerId, host: Host) -> None:
        match self.rng.randrange(3):
            case 0:
                self.at(self.now + self.rng.uniform(0, 3), self.die, runner, host.epoch)
            case 1:
                host.hangs = True
            case _:
                self.at(self.now + self.rng.uniform(0, 3), self.hello, runner, host.epoch)

    def hello(self, runner: RunnerId, epoch: Epoch) -> None:
        """The event stream of this incarnation is there, or there again."""
        host = self.hosts.get(runner)
        if host is not None and host.epoch == epoch:
            hints = None if host.hints is None else frozenset(host.hints)
            self.feed(RunnerUp(runner, epoch, host.slots, tuple(host.running), hints))

    def die(self, runner: RunnerId, epoch: Epoch) -> None:
        host = self.hosts.get(runner)
        if host is None or host.epoch != epoch:
            return
        del self.hosts[runner]
        self.feed(RunnerDown(runner, returns=True))
        for request in host.running:
            if request in self.wanted and request not in self.answers:  # nobody waits for a ghost
                self.answer(request, "runner_lost")
        self.live(runner, Exited(epoch, -9))

    # --- lives -----------------------------------------------------------------------------------

    def live(self, runner: RunnerId, event: LifeEvent) -> None:
        for action in self.lives[runner].handle(event, now=self.now):
            match action:
                case Spawn(epoch):
                    self.at(self.now + self.rng.uniform(0.1, 5), self.become_ready, runner, epoch)
                case Kill():
                    self.die(runner, self.lives[runner].epoch)

    def become_ready(self, runner: RunnerId, epoch: Epoch) -> None:
        hints: list[Hint] | None = [] if self.gives_hints else None
        host = Host(epoch, self.slots, hints, up=True)
        if self.rng.random() < 0.2:
            ghost = RequestId(f"ghost{runner}-{epoch}")  # a dead router sent it; nobody waits for its answer
            host.running[ghost] = self.now
            self.at(self.now + self.rng.uniform(0, 20), self.exorcise, runner, epoch, ghost)
        self.hosts[runner] = host
        self.live(runner, BecameReady(epoch))
        self.hello(runner, epoch)

    def exorcise(self, runner: RunnerId, epoch: Epoch, ghost: RequestId) -> None:
        host = self.hosts.get(runner)
        if host is not None and host.epoch == epoch and not host.hangs:
            host.running.pop(ghost, None)
            self.feed(Released(ghost, runner, epoch))

    def tick(self, until: float) -> None:
        self.feed(SchedulerTick())
        for runner, life in self.lives.items():
            self.live(runner, LifeTick())
            if (host := self.hosts.get(runner)) is not None:
                since = min(host.running.values(), default=None)
                beat_at = 0.0 if host.hangs else self.now
                self.live(runner, Watched(life.epoch, Vitals(since, beat_at, beat_at, progress_known=False)))
        if self.now < until and len(self.answers) < len(self.wanted):
            self.at(self.now + TICK_S, self.tick, until)
