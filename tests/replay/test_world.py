"""The simulated fleet keeps its own rules, whatever a policy asks for, and tells a policy nothing of the future."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falctl.core.policies import POLICIES, Execute, Fal, LoadModel, Move, Policy, Random, State, make_policy
from falctl.core.types import Hint, RequestId, RunnerId
from falctl.errors import StartError
from falctl.replay.trace import Job
from falctl.replay.world import PATIENCE_S, Outcome, Setting, World
from tests.replay.traces import drawn, job, small_traces

R0 = RunnerId(0)
A, B = Hint("a"), Hint("b")


@dataclass
class Script:
    """Makes its moves in turn, each as soon as its instant has come."""

    moves: list[tuple[float, Move]]
    tick_s: float = 0.0

    def choose(self, state: State, *, now: float) -> Move | None:
        del state
        return self.moves.pop(0)[1] if self.moves and now >= self.moves[0][0] else None


def execute(at: float, request: int) -> tuple[float, Move]:
    return at, Execute(RequestId(str(request)), R0, "")


def load(at: float, hint: Hint, *evict: Hint) -> tuple[float, Move]:
    return at, LoadModel(hint, R0, evict, "")


def play(jobs: list[Job], *moves: tuple[float, Move], **setting: object) -> Outcome:
    fleet = replace(Setting(runners=1, models_max=2), **setting)  # type: ignore[arg-type]
    return World(jobs, Script(list(moves)), fleet, check=True).run()


# --- mechanics -------------------------------------------------------------------------------------


def test_a_load_runs_beside_an_execution_and_its_request_starts_when_the_card_is_free() -> None:
    jobs = [job(0, "a", 5, 2), job(1, "b", 1, 3), job(3, "b", 1, 3)]
    outcome = play(jobs, load(0, A), execute(2, 0), load(2, B), execute(7, 1), execute(8, 2))
    assert outcome.loads == [(0, "a", 2), (2, "b", 3)]
    assert outcome.started_s == [2, 7, 8]
    assert outcome.latency_s == [7, 7, 6]


def test_a_request_that_is_sent_cold_loads_first_and_evicts_the_least_recently_used() -> None:
    jobs = [job(0, "a", 1, 4), job(0, "b", 1, 4), job(0, "a", 1, 4), job(0, "c", 1, 4), job(0, "b", 1, 4)]
    outcome = World(jobs, Fal(), Setting(runners=1, models_max=2), check=True).run()
    assert [hint for _, hint, _ in outcome.loads] == ["a", "b", "c", "b"], "c evicts b, for a was used since"
    assert outcome.latency_s == [5, 10, 11, 16, 21]


def test_a_load_of_no_length_makes_its_model_resident_all_the_same() -> None:
    jobs = [job(0, "a", 1, 0), job(5, "a", 1, 0), job(6, "b", 1, 0)]
    outcome = World(jobs, Fal(), Setting(runners=2, models_max=1), check=True).run()
    assert [hint for _, hint, _ in outcome.loads] == ["a", "b"], (
        "the scheduler knew where the second one belongs"
    )


def test_a_load_takes_what_the_latest_row_of_its_model_says() -> None:
    outcome = play([job(0, "a", 1, 2), job(9, "a", 1, 7)], load(9, A), execute(16, 0), execute(17, 1))
    assert outcome.loads == [(9, "a", 7)]
    assert outcome.latency_s == [17, 9]


def test_what_ends_at_one_instant_ends_in_the_same_order_however_it_began() -> None:
    heard: list[str] = []

    class Listens(Script):
        def choose(self, state: State, *, now: float) -> Move | None:
            runner = state.fleet.runners[R0]
            heard.append(f"{now:g} {len(runner.in_use)} {len(runner.loading)}")
            return super().choose(state, now=now)

    jobs = [job(0, "a", 3, 1), job(0, "b", 1, 3)]
    moves = [load(0, A), load(1, B), execute(1, 0), execute(4.5, 1)]
    World(jobs, Listens(moves, tick_s=0.5), Setting(runners=1, models_max=2), check=True).run()
    assert [h for h in heard if h.startswith("4 ")] == ["4 0 1", "4 0 0", "4 0 0"], "execution, load, tick"


def test_a_request_without_a_hint_runs_anywhere_without_a_load() -> None:
    jobs = [job(0, "a"), job(1, ""), job(2, "a")]
    for name in POLICIES:
        outcome = World(
            jobs, make_policy(name, hold_s=1, bypass_max_s=1), Setting(runners=1), check=True
        ).run()
        assert [hint for _, hint, _ in outcome.loads] == ["a"], name


def test_apps_that_only_give_hints_report_one_figure_for_load_and_execution() -> None:
    learnt: list[tuple[float, float]] = []

    class Learns(Fal):
        def choose(self, state: State, *, now: float) -> Execute | None:
            learnt.append((state.costs.exec_s(A), state.costs.load_s(A)))
            return super().choose(state, now=now)

    jobs = [job(0, "a", 2, 6), job(20, "a", 2, 6), job(40, "a", 2, 6)]
    World(jobs, Learns(), Setting(runners=1, loads=False), check=True).run()
    assert learnt[1] == learnt[0], "8 s of load and execution teach neither"
    assert learnt[-1] == (2, 6), "the first run took 8, the second 2"


# --- rules that a policy cannot break --------------------------------------------------------------


@pytest.mark.parametrize(
    ("moves", "setting", "rule"),
    [
        ([load(0, A), load(4, B)], {"models_max": 1}, "over the budget"),
        ([load(0, A), load(4, B)], {"models_max": None, "vram_bytes": 19}, "over the budget"),
        ([load(0, A), execute(0, 0)], {}, "an execution of a model that is still loading"),
        ([load(0, A), execute(1, 1)], {}, "two loads on one card"),
    ],
)
def test_a_move_that_no_card_could_make_ends_the_replay(
    moves: list[tuple[float, Move]], setting: dict[str, object], rule: str
) -> None:
    with pytest.raises(AssertionError, match=rule):
        play([job(0, "a"), job(1, "b")], *moves, **setting)


def card_of(world: World, *, executing: str | None, loading: Hint | None) -> World:
    world.cards[0].executing = None if executing is None else RequestId(executing)
    world.cards[0].loading = loading
    world.cards[0].resident = {A: 0.0}
    world._latest = {A: job(0, "a"), B: job(0, "b")}
    return world


@pytest.mark.parametrize(
    ("executing", "loading", "overlaps", "act", "rule"),
    [
        ("0", None, True, lambda w: w._execute(RequestId("1"), R0), "two executions on one card"),
        (None, B, False, lambda w: w._execute(RequestId("0"), R0), "an execution beside a load"),
        (None, A, True, lambda w: w._load(R0, B, ()), "two loads on one card"),
        ("0", None, False, lambda w: w._load(R0, B, ()), "a load beside an execution"),
        ("0", None, True, lambda w: w._load(R0, B, (A,)), "a victim executes"),
    ],
)
def test_the_cards_hold_even_if_the_scheduler_did_not(
    executing: str | None, loading: Hint | None, *, overlaps: bool, act: Callable[[World], None], rule: str
) -> None:
    world = World([job(0, "a"), job(0, "b")], Fal(), Setting(runners=1, overlaps=overlaps))
    with pytest.raises(AssertionError, match=rule):
        act(card_of(world, executing=executing, loading=loading))


def test_a_policy_that_leaves_requests_waiting_is_told_so() -> None:
    with pytest.raises(StartError, match="lets 1 of 2 requests wait for ever"):
        play([job(0, "a"), job(0, "a")], execute(0, 0))


def test_a_policy_that_holds_by_the_clock_but_never_serves_ends_too() -> None:
    asked: list[float] = []

    class Never(Script):
        def choose(self, state: State, *, now: float) -> Move | None:
            asked.append(now)
            return super().choose(state, now=now)

    world = World([job(0, "a"), job(9000, "a")], Never([], tick_s=10.0), Setting(runners=1))
    with pytest.raises(StartError, match="lets 2 of 2"):
        world.run()
    assert max(asked) == 9000 + PATIENCE_S


# --- what a policy may ask for ---------------------------------------------------------------------


@dataclass
class Patient:
    """Serves what has waited for two seconds, as the clock says."""

    tick_s: float = 0.5
    told: list[Sequence[Job]] = field(default_factory=list)

    def foresee(self, jobs: Sequence[Job]) -> None:
        self.told.append(jobs)

    def choose(self, state: State, *, now: float) -> Move | None:
        oldest, free = state.queue.oldest(), state.fleet.free()
        if oldest is None or not free or now - oldest.arrived_at < 2.0:
            return None
        return Execute(oldest.request, free[0].runner, "waited two seconds")


def test_a_policy_that_holds_by_the_clock_is_asked_in_time() -> None:
    jobs = [job(0, "a", 1, 4), job(100, "a", 1, 4), job(9000, "a", 1, 4)]
    outcome = World(jobs, Patient(), Setting(runners=1), check=True).run()
    assert outcome.latency_s == [7, 3, 3]


def test_a_baseline_that_asks_for_the_truth_gets_the_whole_trace_once() -> None:
    policy = Patient()
    jobs = [job(0, "a")]
    World(jobs, policy, Setting(runners=1)).run()
    assert policy.told == [jobs]


def test_progress_counts_arrivals() -> None:
    told: list[int] = []
    World(drawn(1, 600), Fal(), Setting(runners=4)).run(told.append)
    assert told == [0, 256, 512]


# --- every policy that falctl ships ----------------------------------------------------------------


@pytest.mark.parametrize("name", POLICIES)
@given(
    jobs=small_traces(hints="abcd"),
    runners=st.integers(1, 3),
    limit=st.sampled_from([{"models_max": 1}, {"models_max": 2}, {"models_max": None, "vram_bytes": 60}]),
    overlaps=st.booleans(),
    loads=st.booleans(),
)
def test_everybody_is_served_and_every_rule_holds(
    name: str, jobs: list[Job], runners: int, limit: dict[str, int], *, overlaps: bool, loads: bool
) -> None:
    setting = replace(Setting(runners, overlaps=overlaps, loads=loads), **limit)  # type: ignore[arg-type]
    outcome = World(jobs, make_policy(name, hold_s=3, bypass_max_s=9), setting, check=True).run()
    for j, start, latency in zip(jobs, outcome.started_s, outcome.latency_s, strict=True):
        assert start >= j.t_s
        assert latency == pytest.approx(start + j.exec_s - j.t_s)
    assert {hint for _, hint, _ in outcome.loads} == {j.hint for j in jobs}


class Notes:
    """A policy, and every move that it made."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.moves: list[tuple[float, Move]] = []

    def choose(self, state: State, *, now: float) -> Move | None:
        move = self.policy.choose(state, now=now)
        if move is not None:
            self.moves.append((now, move))
        return move


@pytest.mark.parametrize("overlaps", [True, False])
@pytest.mark.parametrize("name", POLICIES)
def test_the_future_plays_no_part_in_what_is_decided_before_it(name: str, *, overlaps: bool) -> None:
    jobs = drawn(7, 300, gap_s=8.0)
    half = 150
    now = jobs[half].t_s
    # What comes later is in another order, costs other than what its models cost so far, and is of other sizes.
    times = [j.t_s for j in jobs[half:]]
    other = [
        replace(j, t_s=t, exec_s=3 * j.exec_s, load_s=j.load_s / 3)
        for j, t in zip(jobs[: half - 1 : -1], times, strict=True)
    ]
    setting = Setting(3, overlaps=overlaps)
    moves = []
    for trace in (jobs, jobs[:half] + other):
        notes = Notes(make_policy(name, hold_s=3, bypass_max_s=9))
        World(trace, notes, setting).run()
        moves.append([(at, move) for at, move in notes.moves if at < now])
    assert len(moves[0]) > half // 2
    assert moves[0] == moves[1]


def test_random_draws_every_free_runner_and_other_seeds_draw_otherwise() -> None:
    jobs = [job(float(t * 10), "a", 1, 1) for t in range(200)]
    drawn_runners = []
    for seed in (0, 0, 1):
        notes = Notes(Random(seed))
        World(jobs, notes, Setting(runners=4)).run()
        drawn_runners.append([move.runner for _, move in notes.moves])
    assert drawn_runners[0] == drawn_runners[1] != drawn_runners[2]
    for runner in range(4):
        assert 30 <= drawn_runners[0].count(RunnerId(runner)) <= 70
