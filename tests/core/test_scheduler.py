"""The request state machine, event by event: an event in, the actions that must come out."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from falctl.core.events import (
    Action,
    Arrived,
    Behind,
    Bounced,
    Cancelled,
    Dispatch,
    Drains,
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
from falctl.core.fleet import LAST_SERVED_MAX, Fleet
from falctl.core.policies import POLICIES, State, make_policy
from falctl.core.queue import Waiting, WaitingQueue
from falctl.core.scheduler import BOUNCES_MAX, Scheduler
from falctl.core.types import Caps, Epoch, Hint, HintSource, RequestId, RunnerId, Wanted

E1 = Epoch(1)


@dataclass
class Script:
    """Feeds events and gives back dispatches as ``"request@runner"`` and refusals as ``"request!code"``."""

    policy: str = "affinity"
    queue_max: int = 100
    now: float = 0.0
    scheduler: Scheduler = field(init=False)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(make_policy(self.policy, hold_s=10.0, bypass_max_s=30.0), self.queue_max)

    def feed(self, event: Event) -> list[str]:
        actions = self.scheduler.handle(event, now=self.now)
        self.scheduler.check()
        return [told(action) for action in actions]

    def up(
        self, runner: int, *, slots: int = 1, hints: str | None = "", executing: str = "", epoch: int = 1
    ) -> list[str]:
        known = None if hints is None else frozenset(Hint(h) for h in hints.split())
        ids = tuple(RequestId(q) for q in executing.split())
        return self.feed(RunnerUp(RunnerId(runner), Epoch(epoch), slots, ids, known))

    def come(self, request: str, hint: str | None = None, *, source: HintSource = "header") -> list[str]:
        wanted = None if hint is None else Wanted(Hint(hint), source)
        return self.feed(Arrived(RequestId(request), wanted, client="c"))

    def done(self, request: str, runner: int, *, hints: str | None = None) -> list[str]:
        told_first = [] if hints is None else self.hints(runner, hints)
        return told_first + self.feed(Released(RequestId(request), RunnerId(runner), E1))

    def hints(self, runner: int, hints: str) -> list[str]:
        return self.feed(HintsChanged(RunnerId(runner), E1, frozenset(Hint(h) for h in hints.split())))


def told(action: Action) -> str:
    match action:
        case Dispatch(request, runner):
            return f"{request}@{runner}"
        case Refuse(request, code):
            return f"{request}!{code}"
        case Load(runner, _, hint, evict):
            return f"{hint}>{runner}" + "".join(f"-{victim}" for victim in evict)
        case TellWish():
            raise AssertionError(action)


@pytest.mark.parametrize("policy", POLICIES)
def test_one_request_at_a_time_per_slot_in_order_of_arrival(policy: str) -> None:
    s = Script(policy)
    assert s.up(0) == []
    assert s.come("a") == ["a@0"]
    assert s.come("b") == []
    assert s.come("c") == []
    assert s.done("a", 0) == ["b@0"]
    assert s.done("b", 0) == ["c@0"]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_runner_with_slots_takes_that_many(policy: str) -> None:
    s = Script(policy)
    s.up(0, slots=2)
    assert [s.come(q) for q in "abc"] == [["a@0"], ["b@0"], []]


def test_requests_without_a_hint_take_turns() -> None:
    for policy in ("fal", "least-loaded"):
        s = Script(policy)
        s.up(0), s.up(1), s.up(2)
        order = []
        for n in range(6):
            [dispatch] = s.come(f"q{n}")
            order.append(dispatch[-1])
            s.done(f"q{n}", int(dispatch[-1]))
        assert order == list("012012"), policy


# --- fal's rule --------------------------------------------------------------------------------------


def test_fal_prefers_the_exact_match_that_is_idle() -> None:
    s = Script("fal")
    s.up(0, hints="x"), s.up(1, hints="y")
    assert s.come("a", "y") == ["a@1"]


def test_fal_does_not_wait_for_a_busy_match() -> None:
    s = Script("fal")
    s.up(0, hints="x"), s.up(1, hints="y")
    assert s.come("a", "y") == ["a@1"]
    assert s.come("b", "y") == ["b@0"]


def test_fal_prefers_an_empty_list_over_a_list_without_the_hint() -> None:
    s = Script("fal")
    s.up(0, hints="x"), s.up(1, hints="")
    assert s.come("a", "z") == ["a@1"]


def test_fal_reads_the_header_only() -> None:
    s = Script("fal")
    s.up(0, hints="x"), s.up(1, hints="y")
    assert s.come("a", "y", source="body") == ["a@0"]


def test_fal_takes_any_by_turns_when_nothing_matches() -> None:
    s = Script("fal")
    s.up(0, hints="x"), s.up(1, hints="y")
    assert s.come("a", "z") == ["a@0"]
    s.done("a", 0)
    assert s.come("b", "z") == ["b@1"]


@pytest.mark.parametrize("policy", ["fal", "affinity"])
def test_an_app_without_hints_gets_last_served_affinity(policy: str) -> None:
    s = Script(policy)
    s.up(0, hints=None), s.up(1, hints=None)
    [first] = s.come("a", "m")
    s.done("a", int(first[-1]))
    [other] = s.come("b", "n")
    s.done("b", int(other[-1]))
    assert other[-1] != first[-1]
    for n in range(4):
        assert s.come(f"m{n}", "m") == [f"m{n}@{first[-1]}"]
        s.done(f"m{n}", int(first[-1]))


def test_gives_no_hints_and_warm_for_nothing_yet_are_different() -> None:
    s = Script("fal")
    s.up(0, hints=None), s.up(1, hints="")
    assert s.come("a", "m") == ["a@1"], "only the empty list says that it fits any request"


def test_a_runner_that_died_is_no_longer_the_last_that_served() -> None:
    s = Script("affinity")
    s.up(0, hints=None), s.up(1, hints=None)
    assert s.come("a", "m") == ["a@0"]
    s.feed(RunnerDown(RunnerId(0), returns=True))
    s.up(0, hints=None, epoch=2)
    assert s.scheduler.state.fleet.warm(Hint("m"), s.scheduler.state.fleet.runners[RunnerId(0)]) is False


# --- affinity ----------------------------------------------------------------------------------------


def test_affinity_holds_for_a_busy_warm_runner_and_gives_up_after_its_limit() -> None:
    s = Script()
    s.up(0, hints="x"), s.up(1, hints="y")
    assert s.come("a", "x") == ["a@0"]
    assert s.come("b", "x") == []
    s.now = 9.9
    assert s.feed(Tick()) == []
    s.now = 10.0
    assert s.feed(Tick()) == ["b@1"]


def test_affinity_shares_one_load_among_those_who_want_it() -> None:
    s = Script()
    s.up(0), s.up(1)
    assert s.come("a", "x") == ["a@0"]
    assert s.come("b", "x") == [], "runner 0 is about to be warm for x"
    assert s.done("a", 0, hints="x") == ["b@0"]


def test_affinity_sends_a_cold_model_where_least_is_given_up() -> None:
    s = Script()
    s.up(0, hints="x y"), s.up(1, hints="z"), s.up(2, hints="v w u")
    assert s.come("a", "new") == ["a@1"]


def test_affinity_serves_hits_before_older_misses_inside_the_bound() -> None:
    s = Script()
    s.up(0, hints="x")
    assert s.come("a", "x") == ["a@0"]
    s.come("miss", "cold")
    s.come("hit", "x")
    assert s.done("a", 0) == ["hit@0"]
    s.come("hit2", "x")
    s.now = 30.0
    assert s.done("hit", 0) == ["miss@0"], "nobody is passed for longer than bypass_max"


def test_an_overdue_request_goes_to_its_warm_runner_if_that_is_free() -> None:
    s = Script()
    s.up(0, hints="x")
    s.up(1, hints="y")
    assert s.come("a", "x") == ["a@0"]
    assert s.come("b", "y") == ["b@1"]
    s.come("old", "y")
    s.now = 31.0
    s.feed(HintsChanged(RunnerId(0), E1, frozenset()))
    assert s.done("b", 1) == ["old@1"]


def test_affinity_takes_the_body_s_hint_too() -> None:
    s = Script()
    s.up(0, hints="x"), s.up(1, hints="y")
    assert s.come("a", "y", source="body") == ["a@1"]


def test_least_loaded_is_blind() -> None:
    s = Script("least-loaded")
    s.up(0, slots=2, hints="x"), s.up(1, slots=2, hints="y")
    assert [s.come("a", "y"), s.come("b", "y"), s.come("c", "y")] == [["a@0"], ["b@1"], ["c@0"]]


# --- the fleet changes -------------------------------------------------------------------------------


def test_a_restarted_router_dispatches_nothing_to_slots_that_are_in_use() -> None:
    s = Script()
    s.feed(RunnerDown(RunnerId(0), returns=True))
    assert s.come("new") == []
    assert s.up(0, executing="sent-by-the-dead-router") == []
    assert s.feed(Released(RequestId("sent-by-the-dead-router"), RunnerId(0), E1)) == ["new@0"]


def test_a_bounced_request_goes_back_to_its_place_and_the_runner_rests_until_it_speaks() -> None:
    s = Script()
    s.up(0)
    s.come("a")
    s.come("b")
    assert s.feed(Bounced(RequestId("a"), RunnerId(0), E1)) == []
    assert [w.request for w in s.scheduler.state.queue] == ["a", "b"]
    assert s.feed(Released(RequestId("foreign"), RunnerId(0), E1)) == []
    assert s.up(0) == ["a@0"]


def test_a_release_from_the_host_ends_a_rest() -> None:
    s = Script()
    s.up(0, slots=2, executing="foreign")
    assert s.come("a") == ["a@0"]
    s.feed(Bounced(RequestId("a"), RunnerId(0), E1))
    assert s.feed(Released(RequestId("foreign"), RunnerId(0), E1)) == ["a@0"]


def test_a_request_that_bounces_for_ever_is_refused() -> None:
    s = Script()
    s.up(0)
    s.come("a")
    for _ in range(BOUNCES_MAX - 1):
        assert s.feed(Bounced(RequestId("a"), RunnerId(0), E1)) == []
        assert s.up(0) == ["a@0"]
    assert s.feed(Bounced(RequestId("a"), RunnerId(0), E1)) == ["a!bounced_too_often"]


def test_a_bounce_of_what_is_not_in_flight_changes_nothing() -> None:
    s = Script()
    s.up(0)
    assert s.feed(Bounced(RequestId("ghost"), RunnerId(0), E1)) == []


def test_a_request_that_bounces_while_the_fleet_drains_is_refused() -> None:
    s = Script()
    s.up(0)
    s.come("a")
    s.feed(Drains())
    assert s.feed(Bounced(RequestId("a"), RunnerId(0), E1)) == ["a!draining"]


def test_a_runner_that_drains_takes_nothing_more() -> None:
    s = Script()
    s.up(0), s.up(1)
    s.feed(RunnerDrains(RunnerId(0), E1))
    assert s.come("a") == ["a@1"]
    assert s.come("b") == []


def test_news_of_an_old_incarnation_is_dropped() -> None:
    s = Script()
    s.up(0, epoch=2)
    assert s.come("a") == ["a@0"]
    s.come("b")
    assert s.feed(Released(RequestId("a"), RunnerId(0), E1)) == []
    assert s.hints(0, "x") == []
    assert s.scheduler.state.fleet.runners[RunnerId(0)].hints == frozenset()
    assert s.feed(Released(RequestId("a"), RunnerId(9), E1)) == []


def test_a_release_told_twice_frees_one_slot() -> None:
    s = Script()
    s.up(0)
    s.come("a")
    s.come("b")
    s.come("c")
    assert s.done("a", 0) == ["b@0"]
    assert s.done("a", 0) == []


def test_the_slots_of_a_lost_runner_are_gone_with_it() -> None:
    s = Script()
    s.up(0)
    s.come("a")
    s.come("b")
    assert s.feed(RunnerDown(RunnerId(0), returns=True)) == []
    assert s.up(0, epoch=2) == ["b@0"]
    assert s.feed(Released(RequestId("a"), RunnerId(0), E1)) == []


def test_a_stream_that_reconnects_keeps_what_was_sent_meanwhile() -> None:
    s = Script()
    s.up(0, slots=2)
    assert s.come("a") == ["a@0"]
    assert s.up(0, slots=2, executing="") == []
    assert s.come("b") == ["b@0"]
    assert s.come("c") == [], "a may still be on its way to the host"


def test_nothing_waits_for_a_fleet_that_will_not_come_back() -> None:
    s = Script()
    s.up(0)
    s.come("a")
    s.come("b")
    assert s.feed(RunnerDown(RunnerId(0), returns=False)) == ["b!no_runner"]
    assert s.come("c") == ["c!no_runner"]


def test_requests_wait_for_runners_that_start() -> None:
    s = Script()
    s.feed(RunnerDown(RunnerId(0), returns=True))
    assert s.come("a") == []
    assert s.up(0) == ["a@0"]


def test_a_full_queue_refuses_and_says_when_a_place_should_be_free() -> None:
    s = Script(queue_max=50)
    s.up(0)
    for n in range(50):
        s.come(f"q{n}")
    for n in range(30):
        s.now += 8.0
        s.done(f"q{n}", 0)
    for n in range(31):
        s.come(f"r{n}")
    [refusal] = s.scheduler.handle(Arrived(RequestId("late"), None, "c"), now=s.now)
    assert isinstance(refusal, Refuse)
    assert (refusal.code, refusal.waiting) == ("queue_full", 50)
    assert refusal.retry_after_s == pytest.approx(8.0, rel=0.05)


def test_a_job_of_the_durable_queue_is_let_in_whatever_waits() -> None:
    s = Script(queue_max=1)
    s.scheduler.entrance.client_max = 1
    s.up(0)
    for n in range(2):
        s.come(f"q{n}")
    assert s.come("late") == ["late!queue_full"]
    assert s.feed(Arrived(RequestId("job"), None, "c", bounded=False)) == []


def test_a_job_whose_attempt_failed_is_not_behind_those_who_came_since() -> None:
    s = Script("auto")
    s.up(0)
    assert s.come("runs") == ["runs@0"]
    for name in ("first", "second"):
        s.come(name)
        s.now += 1.0
    s.feed(Arrived(RequestId("low"), None, "c", "low", bounded=False, again=True))
    s.feed(Arrived(RequestId("again"), None, "c", bounded=False, again=True))
    turns = [s.done(request, 0) for request in ("runs", "again", "first", "second")]
    assert turns == [["again@0"], ["first@0"], ["second@0"], ["low@0"]]


@pytest.mark.parametrize(("behind", "loads"), [(0, []), (3000, ["x>1"])])
def test_auto_loads_a_further_copy_for_those_that_it_does_not_see(behind: int, loads: list[str]) -> None:
    s, caps = Script("auto"), Caps("card", loads=True, overlaps=True, models_max=1)
    for runner in range(2):
        s.feed(RunnerUp(RunnerId(runner), E1, 1, (), frozenset(), caps))
    [load] = s.come("first", "x")
    assert load == "x>0"
    s.now = 10.0
    assert s.feed(LoadEnded(RunnerId(0), E1, Hint("x"), ok=True, load_s=10.0)) == ["first@0"]
    assert s.come("next", "x") == []
    assert s.feed(Behind(Hint("x"), behind)) == loads


def test_one_client_cannot_take_every_place() -> None:
    s = Script(queue_max=50)
    s.scheduler.entrance.client_max = 3
    s.up(0)
    for n in range(4):
        assert s.feed(Arrived(RequestId(f"a{n}"), None, "a")) in ([], ["a0@0"])
    assert s.feed(Arrived(RequestId("a4"), None, "a")) == ["a4!client_queue_full"]
    assert s.feed(Arrived(RequestId("b0"), None, "b")) == []
    s.feed(Cancelled(RequestId("a2")))
    assert s.feed(Arrived(RequestId("a5"), None, "a")) == []
    for n in range(10):
        assert s.feed(Arrived(RequestId(f"nobody{n}"), None, "")) == []


def test_a_client_is_told_of_its_own_places() -> None:
    s = Script("auto", queue_max=1000)
    s.up(0)
    running = s.come("first")
    for client in "ab":
        for n in range(40):
            s.feed(Arrived(RequestId(f"{client}{n}"), None, client))
    for _ in range(60):
        s.now += 2.0
        running = s.done(running[0].partition("@")[0], 0)
    s.scheduler.entrance.client_max = 1
    for client in "ab":
        [refusal] = s.scheduler.handle(Arrived(RequestId(f"late-{client}"), None, client), now=s.now)
        assert isinstance(refusal, Refuse)
        assert refusal.retry_after_s == pytest.approx(4.0, rel=0.1), "every second place is its own"


def test_a_client_that_left_is_dropped_from_the_queue() -> None:
    s = Script()
    s.up(0)
    s.come("a")
    s.come("b")
    s.come("c")
    assert s.feed(Cancelled(RequestId("b"))) == []
    assert s.done("a", 0) == ["c@0"]


def test_a_client_that_left_in_flight_keeps_its_slot_until_the_host_frees_it() -> None:
    s = Script()
    s.up(0)
    s.come("a")
    assert s.feed(Cancelled(RequestId("a"))) == []
    assert s.come("b") == []
    assert s.done("a", 0) == ["b@0"]


def test_a_draining_fleet_refuses_what_waits_and_what_comes() -> None:
    s = Script()
    s.up(0)
    s.come("a")
    s.come("b")
    assert s.feed(Drains()) == ["b!draining"]
    assert s.come("c") == ["c!draining"]
    assert s.done("a", 0) == []


def test_a_dispatch_says_whether_it_is_warm_and_how_long_it_waited() -> None:
    s = Script()
    s.up(0, hints="x")
    [a] = s.scheduler.handle(Arrived(RequestId("a"), Wanted(Hint("x"), "header"), "c"), now=0.0)
    s.scheduler.handle(Arrived(RequestId("b"), None, "c"), now=1.0)
    [b] = s.scheduler.handle(Released(RequestId("a"), RunnerId(0), E1), now=3.5)
    assert isinstance(a, Dispatch)
    assert isinstance(b, Dispatch)
    assert (a.warm, a.waited_s, a.reason) == (True, 0.0, "warm")
    assert (b.warm, b.waited_s) == (False, 2.5)


def test_the_memory_of_the_last_served_is_bounded() -> None:
    fleet = Fleet()
    for n in range(LAST_SERVED_MAX + 10):
        fleet.serve(Hint(str(n)), RunnerId(0))
    assert len(fleet._last_served) == LAST_SERVED_MAX
    assert Hint("0") not in fleet._last_served


def test_a_policy_asked_about_nothing_chooses_nothing() -> None:
    for name in POLICIES:
        policy = make_policy(name, hold_s=1.0, bypass_max_s=1.0)
        state = State()
        assert policy.choose(state, now=0.0) is None
        state.queue.add(Waiting(RequestId("a"), None, "c", 0.0, 1))
        assert policy.choose(state, now=0.0) is None


def test_the_queue_knows_the_oldest_of_every_hint() -> None:
    queue = WaitingQueue()
    x = Wanted(Hint("x"), "header")
    for order, (name, wanted) in enumerate([("a", None), ("b", x), ("c", x)]):
        queue.add(Waiting(RequestId(name), wanted, "c", 0.0, order))
    assert {w.request for w in queue.heads()} == {"a", "b"}
    assert queue.pop(RequestId("nobody")) is None
    queue.check()
