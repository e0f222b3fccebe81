"""`auto`: nobody waits for ever, and no runner idles beside what it could run, whatever the runners can do."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from itertools import count

import pytest

from falctl.core.events import Arrived, Dispatch, Event, HintsChanged, Load, LoadEnded, Released, RunnerUp
from falctl.core.policies import Auto
from falctl.core.scheduler import Scheduler
from falctl.core.types import Caps, Epoch, Hint, RequestId, RunnerId, Wanted

E1 = Epoch(1)
LOAD_S = 8.0
LOADS = Caps("card", loads=True, overlaps=True, models_max=2)
SERIAL = Caps("card", loads=True, overlaps=False, models_max=2)


@dataclass
class Host:
    """One runner with any number of slots, that keeps what it was told to load."""

    caps: Caps
    slots: int
    hints: set[Hint] | None
    lists: bool = True
    """Its hints are what it holds; else its app lists something else."""


@dataclass
class Play:
    """Requests and runners on a virtual clock. ``started`` is when each request was dispatched."""

    hosts: list[Host]
    now: float = 0.0
    started: dict[str, float] = field(default_factory=dict)
    where: dict[str, int] = field(default_factory=dict)
    exec_s: dict[str, float] = field(default_factory=dict)
    loads: list[str] = field(default_factory=list)
    fails: set[Hint] = field(default_factory=set)
    """Models whose loads fail."""
    _wanted: dict[str, Hint] = field(default_factory=dict)
    _events: list[tuple[float, int, Event]] = field(default_factory=list)
    _n: count[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(Auto(), queue_max=100_000)
        for runner, host in enumerate(self.hosts):
            hints = None if host.hints is None else frozenset(host.hints)
            self._feed(RunnerUp(RunnerId(runner), E1, host.slots, (), hints, host.caps))

    def come(self, at: float, name: str, model: str, exec_s: float = 1.0, client: str = "") -> None:
        self.exec_s[name], self._wanted[name] = exec_s, Hint(model)
        self._at(at, Arrived(RequestId(name), Wanted(Hint(model), "header"), client))

    def until(self, end: float = float("inf")) -> None:
        while self._events and self._events[0][0] <= end:
            self.now, _, event = heapq.heappop(self._events)
            self._feed(event)

    def _at(self, at: float, event: Event) -> None:
        heapq.heappush(self._events, (at, next(self._n), event))

    def _feed(self, event: Event) -> None:
        for action in self.scheduler.handle(event, now=self.now):
            if isinstance(action, Dispatch):
                self._execute(action)
            elif isinstance(action, Load):
                self._load(action)
        self.scheduler.check()

    def _execute(self, action: Dispatch) -> None:
        host, hint = self.hosts[action.runner], self._wanted[action.request]
        self.started[action.request], self.where[action.request] = self.now, action.runner
        exec_s, load_s = self.exec_s[action.request], 0.0
        if host.hints is not None and host.lists and hint not in host.hints:
            load_s = LOAD_S
            self.loads.append(hint)
            if hint not in self.fails:
                while len(host.hints) >= (host.caps.models_max or 99):
                    host.hints.discard(min(host.hints))
                host.hints.add(hint)
            self._at(self.now + load_s, HintsChanged(action.runner, E1, frozenset(host.hints)))
        told: tuple[float | None, float | None] = (exec_s + load_s, None)
        if host.caps.loads:
            told = (exec_s, load_s)
        if hint in self.fails:
            told = (None, None)
        self._at(self.now + exec_s + load_s, Released(action.request, action.runner, E1, *told))

    def _load(self, action: Load) -> None:
        host = self.hosts[action.runner]
        assert host.hints is not None
        host.hints -= set(action.evict)
        self.loads.append(action.hint)
        ok = action.hint not in self.fails
        if ok:
            host.hints.add(action.hint)
        self._at(self.now + LOAD_S, LoadEnded(action.runner, E1, action.hint, ok=ok, load_s=LOAD_S))


def waited_s(play: Play, name: str, came: float) -> float:
    return play.started.get(name, float("inf")) - came


def test_runners_that_give_no_hints_all_work_on_one_model() -> None:
    play = Play([Host(Caps("card"), 1, None) for _ in range(4)])
    for n in range(4):
        play.come(0.0, f"q{n}", "sdxl", 10.0)
    play.until(1.0)
    assert len(play.started) == 4, "an app without provide_hints tells nobody that it is warm"


def test_an_app_whose_hints_are_of_another_kind_works_in_parallel_too() -> None:
    # provide_hints lists loras, say, while routing.hint_from takes the field "model" of every body for the hint.
    play = Play([Host(Caps("card"), 1, {Hint(f"lora-{n}")}, lists=False) for n in range(4)])
    for n in range(400):
        play.come(n * 2.0, f"q{n}", "sdxl", 4.0)
    play.until(800.0)
    assert len(play.started) > 390, "half of the fleet is enough"
    play.come(850.0, "before", "sdxl")
    play.come(870.0, "after", "sdxl")
    play.until(880.0)
    assert play.where["after"] == play.where["before"], "it may be warm where it ran last"
    play.come(900.0, "listed", "lora-2")
    play.until()
    assert waited_s(play, "listed", 900.0) == 0
    assert play.where["listed"] == 2, "the hints that are listed count all the same"


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("caps", [LOADS, SERIAL, Caps("card")], ids=["loads", "serial", "hints"])
def test_a_cold_model_gets_its_turn_beside_a_steady_stream_on_every_slot(slots: int, caps: Caps) -> None:
    play = Play([Host(caps, slots, {Hint("hot"), Hint("warm")})])
    for n in range(1500):
        play.come(n * 1.1 / slots, f"q{n}", "hot" if n % 2 else "warm", 1.0)
    play.come(50.0, "lone", "lone")
    play.until()
    assert waited_s(play, "lone", 50.0) < 300


def test_a_model_whose_load_failed_once_is_loaded_by_jobs_again_after_it_has_run() -> None:
    play = Play([Host(LOADS, 1, {Hint("a"), Hint("b")})])
    play.fails = {Hint("x")}
    play.come(0.0, "first", "x")
    play.until(30.0)
    play.fails = set()
    play.come(30.0, "second", "x")  # the model is there again: it runs
    play.until(100.0)
    for n, model in enumerate("abx"):
        play.come(100.0 + 40 * n, f"q{n}", model)
    play.until()
    assert Hint("x") not in play.scheduler.fleet.unloadable


def test_a_failed_model_is_not_loaded_by_every_runner_at_once() -> None:
    play = Play([Host(LOADS, 1, set()) for _ in range(4)])
    play.scheduler.fleet.give_up(Hint("x"))
    for n in range(4):
        play.come(0.0, f"q{n}", "x", 1.0)
    play.until()
    assert len(play.loads) == 1


def test_a_runner_that_takes_load_jobs_but_gives_no_hints_serves_all_the_same() -> None:
    play = Play([Host(LOADS, 1, None)])
    play.come(0.0, "q", "x")
    play.until()
    assert play.started == {"q": 0.0}


def test_a_large_model_gets_room_although_small_ones_come_and_go() -> None:
    caps = Caps("card", loads=True, overlaps=True, vram_bytes=40)
    play = Play([Host(caps, 1, set())])
    sizes = {f"s{n}": 10 for n in range(12)} | {"big": 35}
    for model, size in sizes.items():
        play.scheduler.state.costs.declare(Hint(model), size)
    for n in range(3000):
        play.come(n * 2.2, f"q{n}", f"s{(n * 7) % 12}", 1.0)
    play.come(200.0, "lone", "big")
    play.until(6000.0)
    assert waited_s(play, "lone", 200.0) < 600


def test_who_waits_long_for_a_holder_that_loads_another_model_gets_a_copy() -> None:
    play = Play([Host(SERIAL, 1, {Hint("z")}), Host(SERIAL, 1, {Hint("w")})])
    play.come(0.0, "w", "w", 5.0)
    play.come(0.1, "x", "x")
    for n in range(40):
        play.come(0.2, f"z{n}", "z", 4.0)
    play.until(5.0)
    assert play.loads == ["x", "z"], "runner 0 loads x beside z, and takes nothing meanwhile"
