"""What is remembered of decisions: whole stories, candidates as they were compared, and bounds that hold."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from falctl.core.decisions import Decisions, Explanation, RequestStory
from falctl.core.events import (
    Arrived,
    Bounced,
    Cancelled,
    Dispatch,
    Drains,
    Event,
    HintsChanged,
    Load,
    LoadEnded,
    Released,
    RunnerDown,
    RunnerDrains,
    RunnerUp,
)
from falctl.core.policies import Auto, Execute, Move, Policy, State, make_policy
from falctl.core.policies.base import Candidate, LoadModel
from falctl.core.policies.explain import standing
from falctl.core.scheduler import BOUNCES_MAX, Scheduler
from falctl.core.types import Caps, Epoch, Hint, RequestId, RunnerId, Wanted
from falctl.replay.trace import Job
from falctl.replay.world import Setting, World

E1 = Epoch(1)
LOADS = Caps("card", loads=True, overlaps=True, models_max=2)


class Scene:
    """A scheduler, and events at instants of our choosing."""

    def __init__(self, policy: Policy | None = None, *, queue_max: int = 100) -> None:
        self.scheduler = Scheduler(policy or Auto(), queue_max)
        self.now = 0.0

    def feed(self, event: Event) -> list[object]:
        actions = self.scheduler.handle(event, now=self.now)
        self.scheduler.check()
        return list(actions)

    def up(self, runner: int, hints: str = "", *, caps: Caps = LOADS, loading: str = "") -> list[object]:
        resident = frozenset(map(Hint, hints.split()))
        ids = tuple(map(Hint, loading.split()))
        return self.feed(RunnerUp(RunnerId(runner), E1, 1, (), resident, caps, ids))

    def come(self, request: str, hint: str | None = None, *, client: str = "c") -> list[object]:
        wanted = None if hint is None else Wanted(Hint(hint), "header")
        return self.feed(Arrived(RequestId(request), wanted, client))

    def release(self, request: str, runner: int, exec_s: float | None = 1.0) -> list[object]:
        return self.feed(Released(RequestId(request), RunnerId(runner), E1, exec_s, 0.0))

    def loaded(self, runner: int, hint: str, *, ok: bool = True, load_s: float = 5.0) -> list[object]:
        return self.feed(LoadEnded(RunnerId(runner), E1, Hint(hint), ok, load_s))

    def explain(self, request: str) -> Explanation:
        found = self.scheduler.decisions.explain(RequestId(request))
        assert found is not None
        return found

    def story(self, request: str) -> RequestStory:
        return self.explain(request).story

    def kinds(self, request: str) -> list[str]:
        return [step.kind for step in self.story(request).steps]


def test_a_request_that_caused_a_load_tells_of_it_with_victims_and_candidates() -> None:
    s = Scene()
    s.up(0, "a b"), s.up(1, "c d")
    s.scheduler.state.demand.arrived(Hint("a"), "", now=0.0)
    s.scheduler.state.demand.arrived(Hint("b"), "", now=1.0)
    s.scheduler.state.demand.arrived(Hint("c"), "", now=1.5)
    s.now = 2.0
    assert [type(action) for action in s.come("q", "new")] == [Load]
    s.now = 7.0
    [dispatch] = s.loaded(1, "new")
    assert isinstance(dispatch, Dispatch)
    s.now = 8.0
    s.release("q", 1)
    told = s.explain("q")
    assert (told.story.arrived_at, told.story.hint, told.story.client) == (2.0, "new", "c")
    sent, ended = told.story.steps
    assert (sent.kind, sent.at, sent.runner, sent.warm, sent.waited_s) == ("dispatched", 7.0, 1, True, 5.0)
    assert (sent.cache, sent.load_s, sent.reason) == ("disk", 5.0, "warm")
    assert [(c.runner, c.standing) for c in sent.candidates] == [(1, "warm")]
    assert (ended.kind, ended.exec_s, ended.load_s) == ("ended", 1.0, 0.0)
    [load] = told.loads
    assert (load.at, load.ended_at, load.ok, load.load_s) == (2.0, 7.0, True, 5.0)
    assert (load.runner, load.evict, load.request, load.waiting) == (1, ("d",), "q", 1)
    first, second = load.candidates
    assert (first.runner, first.standing, second.runner, second.standing) == (0, "open", 1, "open")
    assert second.evict == ("d",)
    assert first.evict in (("a",), ("b",))
    assert second.cost is not None
    assert first.cost is not None
    assert second.cost < first.cost
    assert first.loss > second.loss


def test_who_joins_a_load_hears_of_it_and_who_comes_after_it_does_not() -> None:
    s = Scene()
    s.up(0)
    s.come("first", "x")
    s.now = 1.0
    s.come("second", "x")
    s.now = 2.0
    s.loaded(0, "x")
    s.now = 3.0
    s.release("first", 0)
    s.come("third", "x")
    assert [len(s.explain(q).loads) for q in ("first", "second", "third")] == [1, 1, 0]
    assert s.story("second").steps[-1].cache == "join"
    assert s.explain("first").loads[0].waiting == 1


def test_a_load_that_began_after_a_request_was_sent_is_none_of_its_story() -> None:
    s = Scene()
    s.up(0, "x")
    s.come("q", "x")
    s.now = 1.0
    s.up(1)
    for n in range(60):
        s.come(f"more{n}", "x")
    assert s.scheduler.fleet.runners[RunnerId(1)].loading, "a copy is on its way"
    assert s.explain("q").loads == ()
    assert len(s.explain("more59").loads) == 1
    [copy] = s.explain("more59").loads
    chosen = next(c for c in copy.candidates if c.runner == 1)
    assert chosen.saves is not None
    assert chosen.price is not None
    assert chosen.saves >= chosen.price + chosen.loss


def test_a_model_that_is_still_being_loaded_is_not_warm_though_the_board_has_it_already() -> None:
    s = Scene()
    s.up(0)
    s.come("q", "x")
    assert s.feed(HintsChanged(RunnerId(0), E1, frozenset([Hint("x")]))) == []
    [dispatch] = s.loaded(0, "x")
    assert isinstance(dispatch, Dispatch)
    assert (dispatch.warm, dispatch.cache) == (True, "disk")


def test_a_hello_with_a_load_under_way_does_not_make_its_model_warm() -> None:
    s = Scene()
    s.up(0, "x", loading="x")
    assert s.come("q", "x") == []
    assert len(s.loaded(0, "x")) == 1


def test_bounces_cancellations_and_refusals_are_told() -> None:
    s = Scene(make_policy("least-loaded", hold_s=1, bypass_max_s=1), queue_max=1)
    s.up(0)
    s.come("bounced", "x")
    for _ in range(BOUNCES_MAX - 1):
        s.feed(Bounced(RequestId("bounced"), RunnerId(0), E1))
        s.up(0)
    s.feed(Bounced(RequestId("bounced"), RunnerId(0), E1))
    assert s.kinds("bounced") == ["dispatched", "bounced"] * BOUNCES_MAX + ["refused"]
    assert s.story("bounced").steps[-1].reason == "bounced_too_often"
    s.come("waits"), s.come("too many", "x")
    assert [(step.kind, step.reason) for step in s.story("too many").steps] == [("refused", "queue_full")]
    s.feed(Cancelled(RequestId("waits")))
    s.feed(Cancelled(RequestId("waits")))
    assert s.kinds("waits") == ["cancelled"]
    s.come("last")
    s.feed(Drains())
    s.come("late")
    assert s.story("last").steps[-1].reason == "draining"
    assert s.story("late").steps[-1].reason == "draining"


def test_a_request_whose_runner_goes_is_told_as_lost_and_so_is_its_load() -> None:
    s = Scene()
    s.up(0, "x")
    s.come("q", "x"), s.come("p", "y")
    s.now = 1.0
    s.feed(RunnerDown(RunnerId(0), returns=True))
    assert s.kinds("q") == ["dispatched", "lost"]
    [load] = s.explain("p").loads
    assert (load.ended_at, load.ok) == (1.0, None)


def test_a_hello_without_a_load_that_we_asked_for_ends_its_story() -> None:
    s = Scene()
    s.up(0)
    s.come("q", "x")
    s.now = 1.0
    s.feed(RunnerUp(RunnerId(0), E1, 1, (), frozenset(), LOADS, (Hint("x"),)))
    assert s.explain("q").loads[0].ended_at is None
    s.now = 2.0
    s.feed(RunnerUp(RunnerId(0), E1, 1, (), frozenset(), LOADS))
    first, again = s.explain("q").loads
    assert (first.ended_at, first.ok) == (2.0, None)
    assert again.ended_at is None, "it still waits, so it is asked for anew"


def test_a_failed_load_is_told_as_failed() -> None:
    s = Scene()
    s.up(0)
    s.come("q", "bad")
    s.loaded(0, "bad", ok=False)
    assert [load.ok for load in s.explain("q").loads] == [False]


def test_a_request_that_comes_again_after_its_runner_was_lost_keeps_one_story() -> None:
    s = Scene()
    s.up(0, "x"), s.up(1)
    s.come("q", "x")
    s.feed(RunnerDown(RunnerId(0), returns=False))
    s.now = 5.0
    s.come("q", "x")
    assert s.story("q").arrived_at == 0.0
    assert s.kinds("q")[:2] == ["dispatched", "lost"]


def test_an_id_is_found_by_its_beginning_if_that_is_long_enough_and_fits_one() -> None:
    s = Scene()
    for name in ("8f14e45f-1", "8f14e45f-2", "8f14e4", "c9f0f895-1", "s"):
        s.come(name)
    find = s.scheduler.decisions.find
    assert find("c9f0f8") == "c9f0f895-1"
    assert find("c9f0f") is None, "too short"
    assert find("8f14e45f") is None, "two begin so"
    assert find("8f14e4") == "8f14e4", "an exact name comes first"
    assert find("s") == "s"
    assert find("zzzzzzz") is None


@pytest.mark.parametrize("policy", ["affinity", "fal", "least-loaded", "random"])
def test_a_policy_that_tells_nothing_is_explained_by_what_it_could_see(policy: str) -> None:
    s = Scene(make_policy(policy, hold_s=10, bypass_max_s=30))
    s.up(0, "x", caps=Caps()), s.up(1, "y", caps=Caps()), s.up(2, caps=Caps())
    s.come("q", "x")
    [step] = s.story("q").steps
    assert [c.standing for c in step.candidates] == ["warm", "open", "open"]


class OwnLoader:
    """A policy of somebody else that asks for a load and gives no candidates."""

    def choose(self, state: State, *, now: float) -> Move | None:
        waiting = state.queue.oldest()
        runner = state.fleet.runners[RunnerId(0)]
        if waiting is None or waiting.hint is None or not runner.can_load:
            return None
        return LoadModel(waiting.hint, runner.runner, (), "mine")


def test_a_load_of_a_policy_that_tells_nothing_has_candidates_too() -> None:
    s = Scene(OwnLoader())
    s.up(0), s.up(1, "x")
    s.come("q", "x")
    [load] = s.explain("q").loads
    assert [(c.runner, c.standing, c.cost) for c in load.candidates] == [(0, "open", None), (1, "warm", None)]


def test_how_runners_stand_is_told_in_every_case() -> None:
    s = Scene(make_policy("least-loaded", hold_s=1, bypass_max_s=1))
    plain = Caps()
    for runner in range(3):
        s.up(runner, "x" if runner == 0 else "", caps=plain)
    s.come("q0", "x"), s.come("q1", "y")
    s.feed(RunnerDrains(RunnerId(2), E1))
    state, runners = s.scheduler.state, list(s.scheduler.fleet.runners.values())
    assert [standing(state, Hint("x"), r) for r in runners] == ["warm, busy", "busy", "takes nothing"]
    assert [standing(state, Hint("y"), r) for r in runners] == ["busy", "loading it", "takes nothing"]
    assert [standing(state, None, r) for r in runners] == ["busy", "busy", "takes nothing"]
    s.release("q1", 1)
    assert standing(state, None, runners[1]) == "open"
    assert standing(state, Hint("y"), runners[1]) == "open"


# --- what `auto` compares ----------------------------------------------------------------------------


class Checked:
    """`auto`, with the candidates of every move checked against the move."""

    def __init__(self) -> None:
        self.auto = Auto()
        self.seen: set[str] = set()

    def choose(self, state: State, *, now: float) -> Move | None:
        move = self.auto.choose(state, now=now)
        if move is not None:
            self._check(state, move)
        return move

    def _check(self, state: State, move: Move) -> None:
        by_runner = {c.runner: c for c in move.candidates}
        assert len(by_runner) == len(move.candidates), "each runner once"
        chosen = by_runner[move.runner]
        self.seen.add(f"{type(move).__name__} {chosen.standing} {chosen.saves is not None}")
        assert all(c.cost is None or c.standing in ("warm", "open") for c in move.candidates)
        if chosen.cost is not None:
            assert chosen.cost == min(c.cost for c in move.candidates if c.cost is not None)
        if isinstance(move, LoadModel):
            assert chosen.standing == "open"
            assert chosen.evict == move.evict
            assert len(by_runner) == len(state.fleet.runners)
        elif chosen.standing != "open":
            assert chosen.standing == "warm"
        if chosen.saves is not None:
            assert chosen.price is not None
            assert chosen.saves - chosen.price - chosen.loss >= -1e-6


def jobs_from(rng: Random, count: int, *, rate: float = 1.0) -> list[Job]:
    jobs, at = [], 0.0
    for n in range(count):
        at += rng.expovariate(rate)
        model = min(int(rng.paretovariate(0.7)), 8)
        size = model * 10**9
        jobs.append(Job(at, Hint(f"m{model}"), 0.5 + 0.3 * model, 4.0, size, f"c{n % 5}"))
    return jobs


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.builds(
        Setting,
        runners=st.integers(1, 4),
        models_max=st.integers(1, 3),
        loads=st.booleans(),
        overlaps=st.booleans(),
    ),
)
# A copy that time has made worthwhile is looked for on every runner, not only on the one that has just changed.
@example(1166, Setting(runners=3, models_max=1, loads=False, overlaps=False))
def test_of_all_candidates_the_chosen_one_costs_least(seed: int, setting: Setting) -> None:
    World(jobs_from(Random(seed), 60), Checked(), setting, check=True).run()


def test_a_model_that_could_not_be_loaded_is_executed_where_a_slot_is_free() -> None:
    s = Scene()
    s.up(0, "x"), s.up(1, "y")
    s.come("bad", "bad")
    [load] = s.explain("bad").loads
    other = 1 - load.runner
    s.come("holder", "xy"[load.runner])
    s.loaded(load.runner, "bad", ok=False)
    [step] = s.story("bad").steps
    assert step.runner == other, "the runner that tried has its slot taken"
    stands = {c.runner: (c.standing, c.cost is None) for c in step.candidates}
    assert stands == {load.runner: ("busy", True), other: ("open", False)}


def test_moves_of_every_sort_are_told() -> None:
    checked = Checked()
    for loads in (True, False):
        jobs = jobs_from(Random(4), 900, rate=3.0)
        World(jobs, checked, Setting(4, models_max=2, loads=loads), check=True).run()
    assert checked.seen >= {
        "Execute warm False",
        "LoadModel open False",
        "LoadModel open True",
        "Execute open False",
    }


def test_a_request_without_a_hint_is_weighed_by_what_else_its_runner_is_wanted_for() -> None:
    s = Scene()
    s.up(0, "x"), s.up(1)
    s.come("q")
    [step] = s.story("q").steps
    assert [(c.runner, c.standing, c.cost) for c in step.candidates] == [(0, "open", 0.0), (1, "open", 0.0)]


def test_only_holders_with_a_free_slot_are_compared() -> None:
    s = Scene()
    s.up(0, "x"), s.up(1, "x"), s.up(2, "x")
    s.come("first", "x"), s.come("second", "x"), s.come("third", "x")
    compared = [
        [(c.standing, c.cost) for c in s.story(request).steps[0].candidates]
        for request in ("first", "second", "third")
    ]
    assert compared == [
        [("warm", 0.0), ("warm", 0.0), ("warm", 0.0)],
        [("warm, busy", None), ("warm", 0.0), ("warm", 0.0)],
        [("warm, busy", None), ("warm, busy", None), ("warm", None)],
    ]


# --- bounds ------------------------------------------------------------------------------------------


def dispatch_of(request: str) -> Dispatch:
    return Dispatch(RequestId(request), RunnerId(0), E1, warm=True, waited_s=0.0, reason="warm")


def test_the_oldest_requests_are_forgotten_when_there_are_too_many() -> None:
    decisions = Decisions(requests_max=3)
    for n in range(5):
        decisions.arrived(Arrived(RequestId(f"q{n}"), None, "c"), due=0.0, now=0.0)
        decisions.check()
    assert len(decisions) == 3
    assert decisions.explain(RequestId("q1")) is None
    assert decisions.explain(RequestId("q2")) is not None
    decisions.dispatched(dispatch_of("q1"), (), now=1.0)
    decisions.check()
    assert decisions.explain(RequestId("q1")) is None, "what is forgotten does not come back"


def test_long_names_and_many_candidates_are_bounded_in_bytes() -> None:
    decisions = Decisions(bytes_max=100_000)
    many = tuple(Candidate(RunnerId(n), "open") for n in range(64))
    for n in range(40):
        hint = Wanted(Hint("x" * 1024), "body")
        decisions.arrived(Arrived(RequestId(f"q{n}"), hint, "c"), due=0.0, now=0.0)
        decisions.dispatched(dispatch_of(f"q{n}"), many, now=1.0)
        load = Load(RunnerId(0), E1, Hint(f"m{n}"), (Hint("v" * 1024),), "")
        decisions.load_began(load, many, now=0.0, request=None, waiting=0)
        decisions.check()
    assert 3 <= len(decisions) <= 8
    assert decisions.explain(RequestId("q39")) is not None
    assert decisions.explain(RequestId("q0")) is None


def test_the_oldest_loads_are_forgotten_and_their_end_goes_nowhere() -> None:
    decisions = Decisions(loads_max=2)
    decisions.arrived(Arrived(RequestId("q"), Wanted(Hint("m"), "header"), "c"), due=0.0, now=0.0)
    for runner in range(4):
        load = Load(RunnerId(runner), E1, Hint("m"), (), "")
        decisions.load_began(load, (), now=float(runner), request=RequestId("q"), waiting=1)
        if runner == 0:
            decisions.load_ended(LoadEnded(RunnerId(0), E1, Hint("m"), ok=True, load_s=1.0), now=0.5)
        decisions.check()
    decisions.load_ended(LoadEnded(RunnerId(1), E1, Hint("m"), ok=True, load_s=1.0), now=9.0)
    told = decisions.explain(RequestId("q"))
    assert told is not None
    assert [(load.runner, load.ended_at) for load in told.loads] == [(2, None), (3, None)]


def test_two_moves_are_equal_whatever_was_compared_for_them() -> None:
    first = Execute(RequestId("q"), RunnerId(0), "warm", (Candidate(RunnerId(0), "warm"),))
    assert first == Execute(RequestId("q"), RunnerId(0), "warm")
