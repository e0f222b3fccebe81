"""What `auto` carries over from event to event is what it would see if it looked anew."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from falctl.core.events import (
    Arrived,
    Bounced,
    Cancelled,
    Dispatch,
    Event,
    HintsChanged,
    Load,
    LoadEnded,
    Refuse,
    Released,
    RunnerDown,
    RunnerDrains,
    RunnerUp,
    TellWish,
    Tick,
)
from falctl.core.policies import Auto, Move, State
from falctl.core.policies.look import Look, look_at
from falctl.core.scheduler import Scheduler
from falctl.core.sources import Stock
from falctl.core.types import Caps, Epoch, Hint, RequestId, RunnerId, Wanted

MODELS = tuple(map(Hint, ("m0", "m1", "m2", "m3", "m0+x", "m1+x")))
E1 = Epoch(1)
LOAD_S = 5.0
"""Of all models: their mean stays what it is, so that nothing drifts."""

JOBS = Caps("card", loads=True, overlaps=True, models_max=2)
BYTES = Caps("card", loads=True, overlaps=True, vram_bytes=9 * 10**9)
APART = Caps("card", loads=True, overlaps=False, models_max=2)
JOINED = Caps("card", loads=True, overlaps=True, models_max=2, joint="+")
JOINED_BYTES = Caps("card", loads=True, overlaps=False, vram_bytes=7 * 10**9, joint="+")
HINTS_ONLY = Caps("card", models_max=2)
LIMITLESS = Caps()


class Compared:
    """`auto`, with what it carries compared with a new look each time it is asked."""

    def __init__(self) -> None:
        self.auto = Auto()

    def choose(self, state: State, *, now: float) -> Move | None:
        compare(self.auto._look(state, now), look_at(state, self.auto.knobs, now=now))
        move = self.auto.choose(state, now=now)
        if move is None:
            anew = Auto().choose(state, now=now)
            # A copy's worth drifts, and so does how long it is right to hold for a base.
            assert anew is None or anew.reason == "a further copy pays" or self._held(state), (
                f"missed: {anew}"
            )
        return move

    def _held(self, state: State) -> bool:
        return any(r.caps.joint for r in state.fleet.runners.values())


def compare(carried: Look, anew: Look) -> None:
    """Assert that two looks say the same, but for what copies are worth, which drifts."""
    assert {h: {r.runner for r in rs} for h, rs in carried.copies.items()} == {
        h: {r.runner for r in rs} for h, rs in anew.copies.items()
    }
    assert all(len(rs) == len({r.runner for r in rs}) for rs in carried.copies.values())
    assert [r.runner for r in carried.runners] == [r.runner for r in anew.runners]
    assert (carried.overlaps, carried.many_slots) == (anew.overlaps, anew.many_slots)
    assert carried.coming() == anew.coming()
    for ours, theirs in zip(figures(carried), figures(anew), strict=True):
        assert ours == pytest.approx(theirs), "what is carried over is stale"


def figures(look: Look) -> list[dict[str, float]]:
    queues, waiting = look.queues, look.state.queue
    turns = {}
    for hint in waiting.hints():
        turns[f"execute {hint}"] = queues.execute_key(hint)
        if hint is not None:
            turns[f"load {hint}"] = queues.load_key(hint)
            turns[f"nearest {hint}"] = queues.load_s(hint)
            turns[f"scarce {hint}"] = min((queues.scarce_key(hint, r) for r in look.runners), default=0.0)
    work = {f"work {h}": queues.work_s(h) for h in MODELS}
    work |= {f"drained {h}": queues.drained_s(h) for h in MODELS if look.copies.get(h)}
    work |= {f"spared {h}": queues.spared(h) for h in MODELS if look.copies.get(h)}
    busy = {f"backlog {r.runner}": queues.backlog_s(r) for r in look.runners}
    busy |= {f"others {r.runner} {h}": queues.others(r, h) for r in look.runners for h in MODELS}
    return [turns, work, busy, room(look)]


def room(look: Look) -> dict[str, float]:
    """What could go where; in which order depends on what copies are worth."""
    found: dict[str, float] = {}
    for runner in look.runners:
        shelf = look.room._shelf(runner)
        found[f"free {runner.runner}"] = shelf.free
        found[f"last {runner.runner}"] = shelf.last_turn
        for hint, size, turn in shelf.candidates:
            found[f"victim {runner.runner} {hint}"] = size
            found[f"its turn {runner.runner} {hint}"] = turn
        for wanted in look.state.queue.hints():
            if wanted is not None:
                there = look.room.victims(runner, wanted, look.queues.load_key(wanted))
                found[f"room {runner.runner} {wanted}"] = there is not None
    return found


@dataclass
class Fleet:
    """Runners that do what *kinds* say; what happens is told by numbers, taken modulo what there is."""

    kinds: list[tuple[Caps, bool, int]]
    """Of each runner: what it can do, whether it gives hints, its slots."""
    now: float = 0.0
    n: int = 0
    epochs: dict[RunnerId, Epoch] = field(default_factory=dict)
    running: list[Dispatch] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    scheduler: Scheduler = field(init=False)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(Compared(), queue_max=50)
        costs = self.scheduler.state.costs
        for i, model in enumerate(MODELS):
            costs.declare(model, (i + 1) * 10**9)
            costs.executed(model, "", 0.5 + i)
            costs.loaded(model, "disk", LOAD_S)
        for runner in range(len(self.kinds)):
            self.up(RunnerId(runner), E1)

    def feed(self, event: Event) -> None:
        for action in self.scheduler.handle(event, now=self.now):
            match action:
                case Dispatch():
                    self.running.append(action)
                case Load():
                    self.loads.append(action)
                case Refuse() | TellWish():
                    pass
        self.scheduler.check()

    def up(self, runner: RunnerId, epoch: Epoch) -> None:
        caps, hints, slots = self.kinds[runner]
        known = self.epochs.get(runner) == epoch
        self.epochs[runner] = epoch
        if not known:
            self.running = [d for d in self.running if d.runner != runner]
            self.loads = [load for load in self.loads if load.runner != runner]
        view = self.scheduler.fleet.runners.get(runner)
        held = (view.hints if view is not None and known else frozenset()) if hints else None
        executing = tuple(d.request for d in self.running if d.runner == runner)
        loading = tuple(load.hint for load in self.loads if load.runner == runner)
        self.feed(RunnerUp(runner, epoch, slots, executing, held, caps, loading))

    def happen(self, what: str, a: int, b: int) -> None:
        runner = RunnerId(a % len(self.kinds))
        epoch = self.epochs[runner]
        match what:
            case "come":
                self.n += 1
                wanted = None if b == 0 else Wanted(MODELS[a % len(MODELS)], "header")
                self.feed(Arrived(RequestId(f"q{self.n}"), wanted, f"c{b % 3}"))
            case "end" if self.running:
                done = self.running.pop(a % len(self.running))
                self.feed(Released(done.request, done.runner, done.epoch))
            case "bounce" if self.running:
                gone = self.running.pop(a % len(self.running))
                self.feed(Bounced(gone.request, gone.runner, gone.epoch))
                self.up(gone.runner, gone.epoch)
            case "load ends" if self.loads:
                load = self.loads.pop(a % len(self.loads))
                self.feed(LoadEnded(load.runner, load.epoch, load.hint, ok=b > 1, load_s=LOAD_S))
            case "hints" if self.kinds[runner][1]:
                hints = frozenset(m for i, m in enumerate(MODELS) if b >> i & 1)
                self.feed(HintsChanged(runner, epoch, hints, Stock(frozenset(MODELS[: a % 7]))))
            case "drain":
                self.feed(RunnerDrains(runner, epoch))
            case "hello":
                self.up(runner, epoch)
            case "restart":
                self.feed(RunnerDown(runner, returns=True))
                self.up(runner, Epoch(epoch + 1))
            case "leave":
                self.feed(Cancelled(RequestId(f"q{a}")))
            case _:
                self.feed(Tick())


HAPPENINGS = (
    "come",
    "come",
    "come",
    "end",
    "end",
    "load ends",
    "hints",
    "stock",
    "drain",
    "hello",
    "restart",
)
kinds = st.lists(
    st.tuples(
        st.sampled_from([JOBS, BYTES, APART, JOINED, JOINED_BYTES, HINTS_ONLY, LIMITLESS]),
        st.sampled_from([True, True, True, False]),
        st.integers(1, 2),
    ),
    min_size=1,
    max_size=4,
)
happenings = st.lists(
    st.tuples(
        st.sampled_from([*HAPPENINGS, "bounce", "leave", "tick"]),
        st.integers(0, 11),
        st.integers(0, 63),
        st.sampled_from([0.0, 0.01, 0.1, 0.3]),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(kinds, happenings)
def test_what_is_carried_over_is_what_a_new_look_would_see(
    kinds: list[tuple[Caps, bool, int]], happenings: list[tuple[str, int, int, float]]
) -> None:
    fleet = Fleet(kinds)
    for what, a, b, later_s in happenings:
        fleet.now += later_s
        fleet.happen(what, a, b)


def test_a_draining_runner_ends_what_it_runs_while_others_wait() -> None:
    fleet = Fleet([(JOBS, True, 1), (JOBS, True, 1)])
    for runner in (0, 1):
        fleet.feed(HintsChanged(RunnerId(runner), E1, frozenset(MODELS[:1])))
    for _ in range(3):
        fleet.happen("come", 0, 1)
    fleet.happen("drain", 0, 0)
    fleet.happen("end", 0, 0)
    assert [d.runner for d in fleet.running] == [1]
    fleet.happen("end", 0, 0)
    assert [d.runner for d in fleet.running] == [1]


def test_a_runner_without_hints_loses_what_another_has_served_since() -> None:
    fleet = Fleet([(JOBS, False, 1), (JOBS, True, 1)])
    fleet.happen("come", 0, 1)
    assert [d.runner for d in fleet.running] == [0]
    fleet.happen("come", 0, 1)
    fleet.happen("come", 0, 1)
    fleet.feed(HintsChanged(RunnerId(1), E1, frozenset(MODELS[:1])))
    assert [d.runner for d in fleet.running] == [0, 1]
    fleet.happen("end", 0, 0)
