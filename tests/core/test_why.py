"""Why a model's requests wait, in a sentence and in a few words, without deciding anything."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from random import Random

import pytest

from falctl.core.events import Arrived, Event, LoadEnded, Released, RunnerDown, RunnerDrains, RunnerUp
from falctl.core.policies import POLICIES, Auto, Move, Policy, State, make_policy
from falctl.core.scheduler import Scheduler
from falctl.core.types import Caps, Epoch, Hint, RequestId, RunnerId, Wanted
from falctl.core.why import Why, brief, why
from falctl.replay.trace import Job
from falctl.replay.world import Setting, World

E1 = Epoch(1)
LOADS = Caps("card", loads=True, overlaps=True, models_max=2)
SINGLE = Caps("card", loads=True, models_max=1)
PLAIN = Caps("card")


@dataclass
class Scene:
    """A fleet whose models all take 4 s to run and 10 s to load."""

    policy: Policy = field(default_factory=Auto)
    now: float = 100.0
    n: int = 0
    scheduler: Scheduler = field(init=False)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.policy, 100)
        costs = self.scheduler.state.costs
        for model in "abcxyz":
            for _ in range(3):
                costs.executed(Hint(model), "card", 4.0)
                costs.loaded(Hint(model), "disk", 10.0)

    def feed(self, event: Event) -> None:
        self.scheduler.handle(event, now=self.now)
        self.scheduler.check()

    def up(self, *runners: str, caps: Caps = LOADS, slots: int = 1) -> None:
        for runner, hints in enumerate(runners):
            resident = frozenset(map(Hint, hints.split()))
            self.feed(RunnerUp(RunnerId(runner), E1, slots, (), resident, caps))

    def come(self, *models: str) -> None:
        for model in models:
            self.n += 1
            wanted = Wanted(Hint(model), "header") if model else None
            self.feed(Arrived(RequestId(f"{model}{self.n}"), wanted, f"c{self.n}"))

    def why(self, model: str) -> Why:
        """Return the answer, which must leave everything as it was."""
        state = self.scheduler.state
        before = copy.deepcopy((state.queue, state.fleet))
        found = why(state, self.scheduler.policy, Hint(model), now=self.now)
        assert (state.queue, state.fleet) == before
        return found

    def told(self, model: str) -> str:
        return self.why(model).conclusion

    def brief(self, model: str | None) -> str:
        text = brief(self.scheduler.state, None if model is None else Hint(model), now=self.now)
        assert len(text) <= 32
        return text


def test_a_model_that_waits_for_its_busy_holder_names_it_and_weighs_a_copy() -> None:
    s = Scene()
    s.up("x", "")
    s.come("x")
    s.now = 101.0
    s.come("x")
    s.now = 102.5
    found = s.why("x")
    assert (found.waiting, found.oldest_s, found.exec_s, found.load_s) == (1, 1.5, 4.0, 10.0)
    begin = "1 waits, for 1.5 s: holds for runner 0, free in about 1.5 s; a copy on runner 1 would save "
    assert found.conclusion.startswith(begin)
    holder, other = found.runners
    assert (holder.candidate.standing, holder.free_in_s) == ("warm, busy", 1.5)
    assert [(task.hint, task.since_s) for task in holder.executing] == [("x", 2.5)]
    saves, price = other.candidate.saves, other.candidate.price
    assert saves is not None
    assert price is not None
    assert saves < price
    assert found.conclusion.endswith(f"save {saves:.0f} request-seconds and costs {price:.0f}")
    assert s.brief("x") == "runner 0 busy, 1.5 s left"


def test_a_holder_that_takes_longer_than_expected_is_free_any_moment() -> None:
    s = Scene()
    s.up("x")
    s.come("x", "x")
    s.now = 130.0
    assert (
        s.told("x")
        == "1 waits, for 30 s: holds for runner 0, free any moment; no other runner has a free slot"
    )
    assert s.brief("x") == "runner 0 busy, any moment"


def test_a_copy_that_no_runner_could_load_now_is_said_to_be_none() -> None:
    s = Scene()
    s.up("x a", "")
    s.come("y")
    s.come("x", "x")
    assert s.told("x").endswith("holds for runner 0, free in about 4.0 s; no other runner could load it now")


def test_a_model_that_is_being_loaded_says_where_and_for_how_long() -> None:
    s = Scene()
    s.up("", "")
    s.come("x")
    s.now = 103.0
    assert s.told("x") == "1 waits, for 3.0 s: runner 0 loads it, 7.0 s left"
    assert s.brief("x") == "runner 0 loads it, 7.0 s left"
    [task] = s.why("x").runners[0].loading
    assert (task.hint, task.since_s) == ("x", 3.0)
    s.now = 140.0
    assert s.brief("x") == "runner 0 loads it, any moment"


def test_a_model_that_a_cold_execution_loads_waits_for_its_end() -> None:
    s = Scene()
    s.up("", caps=PLAIN)
    s.come("x", "x")
    s.now = 104.0
    assert s.told("x") == "1 waits, for 4.0 s: runner 0 loads it, 10 s left"
    assert s.brief("x") == "runner 0 loads it, 10 s left"


def test_a_model_that_nobody_holds_says_of_each_runner_why_it_cannot_load_it() -> None:
    s = Scene()
    s.up("x", "", "", caps=SINGLE)
    s.come("x", "y")
    s.feed(RunnerDrains(RunnerId(2), E1))
    s.come("z")
    assert s.told("z") == (
        "1 waits, for 0.0 s: nobody holds it, and runner 0 is busy, 4.0 s left, "
        "runner 1 is busy, 10 s left, runner 2 takes nothing now"
    )
    assert s.brief("z") == "all runners busy, 4.0 s left"


def test_a_model_for_which_nothing_can_be_evicted_says_so() -> None:
    s = Scene()
    s.up("x", caps=Caps("card", loads=True, overlaps=True, models_max=1))
    s.come("x")
    s.come("z")
    assert s.told("z").endswith("nobody holds it, and runner 0 has nothing to evict for it")
    [row] = s.why("z").runners
    assert row.candidate.standing == "no room"
    assert s.brief("z") == "others go first"


def test_a_model_that_nobody_waits_for_says_where_a_request_would_go() -> None:
    s = Scene()
    s.up("x", "x y")
    assert s.told("x") == "nobody waits; warm on runners 0, 1; a request now would be sent to runner 0 (warm)"
    assert s.told("y") == "nobody waits; warm on runner 1; a request now would be sent to runner 1 (warm)"
    assert s.told("z") == (
        "nobody waits; nobody holds it; a request now would be served after a load on runner 0 (nobody is warm for it)"
    )


def test_a_load_that_would_evict_names_its_victims() -> None:
    s = Scene()
    s.up("x", caps=SINGLE)
    assert "after a load on runner 0, evicting x (" in s.told("z")


def test_a_model_that_would_wait_says_for_what() -> None:
    s = Scene()
    s.up("x")
    s.come("x")
    s.now = 101.0
    assert s.told("x") == (
        "nobody waits; warm on runner 0; a request now would wait: holds for runner 0, free in about 3.0 s; "
        "no other runner has a free slot"
    )


def test_a_fleet_without_runners_says_whether_one_is_coming() -> None:
    s = Scene()
    assert s.told("x").endswith(
        "a request now would wait: no runner is up and none will be; see `falctl status`"
    )
    assert s.brief("x") == "no runner is up"
    s.feed(RunnerDown(RunnerId(0), returns=True))
    s.come("x")
    assert s.told("x") == "1 waits, for 0.0 s: no runner is up, one is on its way"


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_says_why(policy: str) -> None:
    s = Scene(make_policy(policy, hold_s=10.0, bypass_max_s=30.0))
    s.up("x", "", caps=PLAIN)
    assert "a request now would be sent to runner " in s.told("x")
    s.come("x", "y")
    s.come("x", "")
    assert s.told("x").startswith("1 waits, for 0.0 s: ")
    assert s.brief(None).startswith("all runners busy, ")
    assert len(s.why("x").runners) == 2


def test_a_policy_that_holds_beside_a_free_runner_says_for_whom() -> None:
    s = Scene(make_policy("affinity", hold_s=10.0, bypass_max_s=30.0))
    s.up("x", "", caps=PLAIN)
    s.come("x", "x")
    assert s.told("x").endswith("holds for runner 0, free in about 4.0 s")
    s.now = 111.0
    assert s.told("x").endswith("sent to runner 1 (held long enough for a busy warm runner)")


def test_a_request_without_a_hint_beside_an_open_runner_waits_for_others() -> None:
    s = Scene()
    s.up("x", caps=LOADS, slots=2)
    s.come("x")
    assert s.brief(None) == "others go first"


def test_a_runner_that_loads_and_cannot_do_both_is_free_when_the_load_ends() -> None:
    s = Scene()
    s.up("x", "y", caps=SINGLE)
    s.come("y", "z")
    s.now = 102.0
    s.come("x")
    [first, _] = s.why("x").runners
    assert (first.free_in_s, [task.hint for task in first.loading]) == (8.0, ["z"])


def test_of_two_slots_the_one_that_ends_first_counts() -> None:
    s = Scene()
    s.up("x", slots=2)
    s.come("x")
    s.now = 102.0
    s.come("x", "x")
    assert s.why("x").runners[0].free_in_s == 2.0
    s.feed(Released(RequestId("x1"), RunnerId(0), E1, 2.0, 0.0))
    assert s.why("x").runners[0].free_in_s > 2.0, "the next one took that slot"


def test_several_are_counted_and_the_oldest_told() -> None:
    s = Scene()
    s.up("x")
    s.come("x", "x")
    s.now = 101.0
    s.come("x")
    s.now = 102.0
    assert s.told("x").startswith("2 wait, the oldest for 2.0 s: ")


def test_others_that_are_due_first_are_said_to_be() -> None:
    s = Scene(make_policy("fal", hold_s=1.0, bypass_max_s=1.0))
    s.up("x", caps=PLAIN)
    s.come("x")
    s.scheduler.fleet.runners[RunnerId(0)].blocked = True
    s.come("x", "y")
    s.scheduler.fleet.runners[RunnerId(0)].blocked = False
    s.scheduler.fleet.runners[RunnerId(0)].in_use.clear()
    assert s.told("y").endswith("others are due before it")


def test_a_request_would_wait_behind_those_that_wait_already() -> None:
    s = Scene(make_policy("fal", hold_s=1.0, bypass_max_s=1.0))
    s.up("x", caps=PLAIN)
    s.come("x", "a", "b")
    assert s.scheduler.in_flight == 1
    assert s.told("x").startswith(
        "nobody waits; warm on runner 0; a request now would wait: holds for runner 0"
    )
    s.scheduler.fleet.runners[RunnerId(0)].in_use.clear()
    assert s.told("x") == "nobody waits; warm on runner 0; a request now would wait: others are due before it"


def test_a_load_that_has_ended_makes_its_runner_warm() -> None:
    s = Scene()
    s.up("")
    s.come("x")
    s.feed(LoadEnded(RunnerId(0), E1, Hint("x"), ok=True, load_s=10.0))
    assert s.told("x").startswith(
        "nobody waits; warm on runner 0; a request now would wait: holds for runner 0"
    )


class Nosy:
    """`auto`, asked why before every decision."""

    def __init__(self, *, asks: bool) -> None:
        self.auto = Auto()
        self.asks = asks
        self.moves: list[Move | None] = []

    def choose(self, state: State, *, now: float) -> Move | None:
        if self.asks:
            for model in ("m1", "m2", "m7"):
                why(state, self.auto, Hint(model), now=now)
                brief(state, Hint(model), now=now)
        self.moves.append(self.auto.choose(state, now=now))
        return self.moves[-1]


@pytest.mark.parametrize("loads", [True, False])
@pytest.mark.parametrize("overlaps", [True, False])
def test_who_asks_why_changes_no_decision(loads: bool, overlaps: bool) -> None:
    rng = Random(5)
    jobs, at = [], 0.0
    for n in range(300):
        at += rng.expovariate(1.0)
        model = min(int(rng.paretovariate(0.8)), 8)
        jobs.append(Job(at, Hint(f"m{model}"), 1.0 + model / 3, 4.0, 10**9, f"c{n % 4}"))
    setting = Setting(3, models_max=2, loads=loads, overlaps=overlaps)
    moves = []
    for asks in (False, True):
        policy = Nosy(asks=asks)
        World(jobs, policy, setting, check=True).run()
        moves.append(policy.moves)
    assert moves[0] == moves[1]
