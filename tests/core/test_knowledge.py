"""What the scheduler learns, remembers and forgets."""

from __future__ import annotations

import pytest

from falctl.core import costs as costs_module
from falctl.core import demand as demand_module
from falctl.core import fair as fair_module
from falctl.core import fleet as fleet_module
from falctl.core.costs import Costs
from falctl.core.demand import Demand
from falctl.core.events import (
    Arrived,
    Cancelled,
    Dispatch,
    HintsChanged,
    Load,
    LoadEnded,
    Refuse,
    Released,
    RunnerUp,
    Tick,
)
from falctl.core.fair import LOW_S, FairShare
from falctl.core.fleet import Fleet, Runner
from falctl.core.policies.auto import Auto
from falctl.core.scheduler import Scheduler
from falctl.core.types import Caps, Epoch, Hint, RequestId, RunnerId, Wanted

A, B, C = Hint("a"), Hint("b"), Hint("c")
R0, E1 = RunnerId(0), Epoch(1)


def arrived(name: str, hint: Hint, *, start_by: float | None = None) -> Arrived:
    return Arrived(RequestId(name), Wanted(hint, "header"), "client", start_by=start_by)


def scheduler(*, overlaps: bool = True, hints: frozenset[Hint] | None = frozenset()) -> Scheduler:
    made = Scheduler(Auto(), queue_max=10)
    caps = Caps(gpu="card", loads=True, overlaps=overlaps, models_max=1)
    made.handle(RunnerUp(R0, E1, 1, (), hints, caps), now=0.0)
    return made


def test_a_slower_card_is_known_from_whatever_it_runs() -> None:
    costs = Costs()
    for _ in range(200):
        costs.executed(A, "fast", 1.0)
        costs.executed(B, "fast", 4.0)
    for _ in range(400):
        costs.executed(A, "slow", 2.0)
        costs.executed(A, "fast", 1.0)
    assert costs.speed("slow") > 1.5 * costs.speed("fast")
    assert costs.exec_s(B, "slow") > 1.5 * costs.exec_s(B, "fast")


def test_one_stray_observation_moves_little() -> None:
    costs = Costs()
    for _ in range(20):
        costs.executed(A, "card", 1.0)
    costs.executed(A, "card", 1000.0)
    assert costs.exec_s(A, "card") < 1.5


def test_a_declared_size_predicts_the_first_load() -> None:
    costs = Costs()
    costs.declare(A, 10 * 10**9)
    costs.loaded(A, "disk", 10.0)
    costs.declare(B, 30 * 10**9)
    assert costs.load_s(B) == pytest.approx(30.0)


def test_a_first_run_is_told_apart_once_a_warm_one_is_known() -> None:
    costs = Costs()
    costs.remember_first(A, 9.0)
    costs.executed(A, "card", 1.0)
    costs.settle(A, "card")
    costs.settle(A, "card")
    assert costs.load_s(A) == pytest.approx(8.0)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs_module, "HINTS_MAX", 3)
    monkeypatch.setattr(demand_module, "HINTS_MAX", 3)
    monkeypatch.setattr(demand_module, "CLIENTS_MAX", 3)
    monkeypatch.setattr(fair_module, "CLIENTS_MAX", 3)
    costs, demand, fair = Costs(), Demand(), FairShare()
    for n in range(10):
        hint = Hint(f"h{n}")
        costs.executed(hint, "card", 1.0)
        demand.arrived(hint, f"c{n}", now=float(n))
        fair.due(f"c{n}", "normal", 1.0, now=0.0)
    assert not costs.knows(Hint("h0"))
    assert costs.knows(Hint("h9"))
    assert demand.share(Hint("h0")) == 0.0
    assert len(fair._until) == 3


def test_what_any_request_may_name_is_remembered_in_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "USED_MAX", 3)
    monkeypatch.setattr(fleet_module, "UNLOADABLE_MAX", 3)
    fleet, runner = Fleet(), Runner(R0, E1, 1, None)
    for n in (0, 1, 2, 0, 3):
        fleet.give_up(Hint(f"h{n}"))
        runner.use(Hint(f"h{n}"), n)
    assert set(fleet.unloadable) == {Hint("h1"), Hint("h2"), Hint("h3")}
    assert set(runner.used) == {Hint("h2"), Hint("h0"), Hint("h3")}, (
        "the one not used for longest is forgotten"
    )


def test_a_cost_that_was_nothing_for_long_is_learnt_anew() -> None:
    for before, now in ((0.0, 30.0), (1e-6, 30.0), (30.0, 1e-3)):
        costs = Costs()
        for _ in range(50):
            costs.loaded(A, "disk", before)
        for _ in range(40):
            costs.loaded(A, "disk", now)
        assert costs.load_s(A) == pytest.approx(now, rel=0.2, abs=0.8)


def test_strays_to_either_side_do_not_add_up() -> None:
    costs = Costs()
    for _ in range(20):
        costs.executed(A, "card", 1.0)
    for stray in (100.0, 0.001, 100.0, 0.001, 100.0):
        costs.executed(A, "card", stray)
    assert 0.5 < costs.exec_s(A, "card") < 2.0
    for usual in (1.0, 1.0, 100.0, 1.0, 100.0, 1.0, 100.0):
        costs.executed(A, "card", usual)
    assert costs.exec_s(A, "card") < 5.0, "unclipped it were 30"


def test_a_pause_does_not_hide_the_rate_of_what_comes_after_it() -> None:
    demand = Demand()
    for n in range(200):
        demand.arrived(A, "", now=float(n))
    assert demand.gap_s == pytest.approx(1.0)
    demand.arrived(A, "", now=199.0 + 8 * 3600.0)
    assert demand.gap_s == pytest.approx(2.0)


def test_the_first_gaps_count_alike_whatever_the_very_first_was() -> None:
    for first_s in (0.001, 1.0, 600.0):
        demand = Demand()
        demand.arrived(A, "", now=0.0)
        for n in range(200):
            demand.arrived(A, "", now=first_s + n)
        assert 0.5 < demand.gap_s < 4.0


def test_arrivals_in_bursts_have_the_rate_of_all_of_them() -> None:
    demand = Demand()
    for n in range(3000):
        demand.arrived(A, "", now=float(n // 20 * 20))
    assert 0.7 < demand.gap_s < 1.4


def test_a_batch_is_due_one_by_one_and_another_client_comes_before_most_of_it() -> None:
    fair = FairShare()
    batch = [fair.due("a", "normal", 2.0, now=0.0) for _ in range(5)]
    assert batch == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert fair.due("b", "normal", 2.0, now=3.0) == 3.0
    assert fair.due("", "normal", 2.0, now=1.0) == 1.0


def test_a_batch_of_low_priority_holds_up_no_normal_request_of_its_own_client() -> None:
    fair = FairShare()
    batch = [fair.due("a", "low", 2.0, now=0.0) for _ in range(3)]
    assert batch == [LOW_S, LOW_S + 2.0, LOW_S + 4.0]
    assert fair.due("a", "normal", 2.0, now=1.0) == 1.0


def test_who_leaves_the_queue_unserved_is_not_charged_for_it() -> None:
    s = scheduler(overlaps=False)
    for n in range(10):
        s.handle(arrived(f"q{n}", A, start_by=2.0 if n > 5 else None), now=0.0)
    for n in range(6):
        s.handle(Cancelled(RequestId(f"q{n}")), now=1.0)
    s.handle(Cancelled(RequestId("q0")), now=1.0)
    assert [type(action) for action in s.handle(Tick(), now=2.0)] == [Refuse] * 4
    s.handle(arrived("next", A), now=3.0)
    waiting = s.queue.oldest()
    assert waiting is not None
    assert waiting.due == pytest.approx(3.0)


def test_a_refund_for_a_client_that_is_forgotten_changes_nothing() -> None:
    fair = FairShare()
    fair.refund("a", "normal", 5.0)
    assert fair.due("a", "normal", 2.0, now=1.0) == 1.0


def test_those_who_wait_for_a_load_share_it_and_their_receipts_say_so() -> None:
    s = scheduler()
    [load] = s.handle(arrived("1", A), now=0.0)
    assert isinstance(load, Load)
    assert (load.runner, load.hint, load.evict) == (R0, A, ())
    assert s.handle(arrived("2", A), now=1.0) == []
    [first] = s.handle(LoadEnded(R0, E1, A, ok=True, load_s=5.0), now=5.0)
    assert isinstance(first, Dispatch)
    assert (first.cache, first.load_s) == ("disk", 5.0)
    [second] = s.handle(Released(RequestId("1"), R0, E1, 1.0, 0.0), now=6.0)
    assert isinstance(second, Dispatch)
    assert (second.cache, second.load_s) == ("join", 4.0)
    s.handle(Released(RequestId("2"), R0, E1, 1.0, 0.0), now=7.0)
    [third] = s.handle(arrived("3", A), now=8.0)
    assert isinstance(third, Dispatch)
    assert third.cache is None
    assert s.fleet.runners[R0].free_slots == 0
    assert len(s.queue) == 0


def test_a_victim_that_is_still_told_as_resident_does_not_count_as_that() -> None:
    s = scheduler(hints=frozenset({B}))
    [load] = s.handle(arrived("1", A), now=0.0)
    assert isinstance(load, Load)
    assert load.evict == (B,)
    s.handle(HintsChanged(R0, E1, frozenset({B})), now=0.1)
    assert s.fleet.runners[R0].hints == frozenset()


def test_a_model_that_is_told_as_resident_before_its_load_has_ended_counts_from_then_on() -> None:
    s = scheduler()
    s.handle(arrived("1", A), now=0.0)
    assert s.handle(HintsChanged(R0, E1, frozenset({A})), now=5.0) == []
    [first] = s.handle(LoadEnded(R0, E1, A, ok=True, load_s=5.0), now=5.0)
    assert isinstance(first, Dispatch)
    assert (first.cache, first.load_s) == ("disk", 5.0), "its receipt says that it waited for the load"


def test_what_a_runner_was_loading_when_its_stream_broke_counts_once_it_has_ended() -> None:
    s = scheduler()
    s.handle(arrived("1", A), now=0.0)
    caps = Caps(gpu="card", loads=True, overlaps=True, models_max=1)
    assert s.handle(RunnerUp(R0, E1, 1, (), frozenset({A}), caps, loading=(A,)), now=1.0) == []
    [dispatch] = s.handle(RunnerUp(R0, E1, 1, (), frozenset({A}), caps), now=2.0)
    assert isinstance(dispatch, Dispatch)


@pytest.mark.parametrize(
    "found",
    [
        HintsChanged(R0, E1, frozenset({A})),
        RunnerUp(R0, E1, 1, (), frozenset({A}), Caps(gpu="card", loads=True, overlaps=True, models_max=1)),
    ],
)
def test_a_model_that_a_runner_holds_is_loaded_by_jobs_again(found: HintsChanged | RunnerUp) -> None:
    s = scheduler()
    s.handle(arrived("1", A), now=0.0)
    s.handle(LoadEnded(R0, E1, A, ok=False, load_s=0.0), now=1.0)
    assert list(s.fleet.unloadable) == [A]
    s.handle(HintsChanged(R0, E1, frozenset({B})), now=2.0)
    assert list(s.fleet.unloadable) == [A]
    s.handle(found, now=3.0)
    assert not s.fleet.unloadable


def test_a_model_whose_load_fails_is_executed_so_that_its_client_hears_why() -> None:
    s = scheduler()
    s.handle(arrived("1", A), now=0.0)
    [dispatch] = s.handle(LoadEnded(R0, E1, A, ok=False, load_s=0.0), now=1.0)
    assert isinstance(dispatch, Dispatch)
    assert s.handle(LoadEnded(R0, E1, C, ok=True, load_s=1.0), now=2.0) == []


def test_a_load_that_failed_costs_no_victim_that_is_still_there() -> None:
    s = scheduler(hints=frozenset({B}))
    [load] = s.handle(arrived("1", A), now=0.0)
    assert isinstance(load, Load)
    assert load.evict == (B,)
    s.handle(HintsChanged(R0, E1, frozenset({B})), now=0.5)
    assert s.fleet.runners[R0].hints == frozenset(), "it is leaving"
    s.handle(LoadEnded(R0, E1, A, ok=False, load_s=0.0, hints=frozenset({B})), now=1.0)
    assert s.fleet.runners[R0].hints == frozenset({B})


def test_a_model_that_is_loaded_by_jobs_and_never_listed_is_executed_without_them() -> None:
    s = scheduler()
    s.handle(arrived("1", A), now=0.0)
    [dispatch] = s.handle(LoadEnded(R0, E1, A, ok=True, load_s=1.0, hints=frozenset()), now=1.0)
    assert isinstance(dispatch, Dispatch)
    s.handle(HintsChanged(R0, E1, frozenset({B})), now=2.0)
    s.handle(Released(dispatch.request, R0, E1, 1.0, 0.0), now=2.0)
    assert list(s.fleet.unlisted) == [A]
    [again] = s.handle(arrived("2", A), now=3.0)
    assert isinstance(again, Dispatch)


def test_a_model_that_leaves_for_another_while_its_last_request_ends_is_not_one_that_is_never_listed() -> (
    None
):
    s = scheduler()
    s.handle(arrived("1", A), now=0.0)
    s.handle(LoadEnded(R0, E1, A, ok=True, load_s=1.0), now=1.0)
    s.fleet.runners[R0].leaving = frozenset({A})
    s.fleet.runners[R0].hints = frozenset()
    s.handle(Released(RequestId("1"), R0, E1, 1.0, 0.0), now=2.0)
    assert not s.fleet.unlisted


def test_a_load_of_what_was_there_teaches_nothing() -> None:
    s = scheduler()
    s.handle(arrived("1", A), now=0.0)
    s.handle(LoadEnded(R0, E1, A, ok=True, load_s=0.0), now=1.0)
    assert s.state.costs.learnt_load_s(A) is None


def test_a_runner_whose_hints_are_gone_is_asked_for_no_load() -> None:
    s = scheduler(overlaps=False)
    s.handle(arrived("1", A), now=0.0)
    assert s.handle(arrived("2", B), now=0.5) == []
    s.handle(HintsChanged(R0, E1, None), now=1.0)
    for action in s.handle(LoadEnded(R0, E1, A, ok=True, load_s=1.0), now=1.0):
        assert not isinstance(action, Load)
    assert s.fleet.runners[R0].hints is None


def test_what_should_have_started_by_now_is_refused() -> None:
    s = scheduler()
    s.handle(arrived("1", A, start_by=2.0), now=0.0)
    assert s.handle(Tick(), now=1.9) == []
    [refusal] = s.handle(Tick(), now=2.0)
    assert isinstance(refusal, Refuse)
    assert refusal.code == "start_timeout"


def test_a_host_that_tells_its_load_apart_teaches_both() -> None:
    s = scheduler(hints=frozenset({A}))
    s.handle(arrived("1", A), now=0.0)
    s.handle(Released(RequestId("1"), R0, E1, exec_s=1.0, load_s=3.0), now=4.0)
    assert (s.state.costs.exec_s(A, "card"), s.state.costs.load_s(A)) == (1.0, 3.0)


def test_what_a_cold_run_took_beyond_the_known_execution_was_its_load() -> None:
    s = Scheduler(Auto(), queue_max=10)
    s.handle(RunnerUp(R0, E1, 1, (), frozenset({A})), now=0.0)
    s.handle(arrived("1", A), now=0.0)
    s.handle(Released(RequestId("1"), R0, E1, exec_s=1.0), now=1.0)
    s.handle(HintsChanged(R0, E1, frozenset()), now=2.0)
    s.handle(arrived("2", A), now=2.0)
    s.handle(Released(RequestId("2"), R0, E1, exec_s=4.0), now=6.0)
    assert (s.state.costs.exec_s(A), s.state.costs.load_s(A)) == (1.0, 3.0)


def test_shares_add_up_alike_whether_no_client_is_known_or_one_or_thirty() -> None:
    for clients in (0, 1, 3, 30):
        demand = Demand()
        for n in range(2000):
            client = n * 7 % clients if clients else 0
            demand.arrived(Hint(f"h{n % 13}"), f"c{client}" if clients else "", now=float(n))
        total = sum(demand.share(Hint(f"h{n}")) for n in range(13))
        assert total == pytest.approx(demand_module.TOTAL, abs=0.05), clients
