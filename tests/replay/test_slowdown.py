"""An execution takes longer beside a load for exactly the share of it that overlaps, and tells so once it has ended."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from falctl.core.policies import POLICIES, Auto, Execute, LoadModel, Move, State, make_policy
from falctl.core.types import Hint, RequestId, RunnerId
from falctl.errors import StartError
from falctl.replay.trace import Job
from falctl.replay.world import Outcome, Setting, World
from tests.replay.traces import drawn, job, small_traces

R0 = RunnerId(0)
A, B, C = Hint("a"), Hint("b"), Hint("c")
SLOW = Setting(runners=1, models_max=3, overlap_slowdown=0.25)


class Script:
    """Makes its moves in turn, each as soon as its instant has come, and notes what an execution is known to take."""

    def __init__(self, *moves: tuple[float, Move]) -> None:
        self.moves = list(moves)
        self.tick_s = 0.25
        self.learnt_s = 0.0

    def choose(self, state: State, *, now: float) -> Move | None:
        if state.costs.knows(A):
            self.learnt_s = state.costs.exec_s(A)
        return self.moves.pop(0)[1] if self.moves and now >= self.moves[0][0] else None


def execute(at: float, request: int) -> tuple[float, Move]:
    return at, Execute(RequestId(str(request)), R0, "")


def load(at: float, hint: Hint) -> tuple[float, Move]:
    return at, LoadModel(hint, R0, (), "")


@pytest.mark.parametrize(
    ("loads", "ends_at"),
    [
        ([], 5.0),
        ([(2.0, B, 2.0)], 5.4),  # in 2 s beside the load 1.6 s of it are done
        ([(0.0, B, 9.0)], 6.25),  # all of it beside the load
        ([(0.0, B, 1.0), (2.0, C, 1.0)], 5.4),
        ([(0.0, B, 1.0), (1.0, C, 1.0)], 5.4),
        ([(4.0, B, 9.0)], 5.25),  # the load outlasts it
        ([(5.0, B, 9.0)], 5.0),  # the load begins as it ends
    ],
)
def test_only_what_runs_beside_a_load_takes_longer(
    loads: list[tuple[float, Hint, float]], ends_at: float
) -> None:
    at = 10.0  # a is loaded by then
    jobs = [
        job(0, "a", 5, 1),
        *(job(0, hint, 1, load_s) for _, hint, load_s in loads),
        job(0, "x"),
        job(99, "x"),
    ]
    script = Script(load(0, A), execute(at, 0), *(load(at + start, hint) for start, hint, _ in loads))
    world = World(jobs, script, SLOW, check=True)
    with pytest.raises(StartError, match="wait for ever"):
        world.run()  # the others are there to be loaded for, and to let the clock run
    assert world.outcome.latency_s[0] == pytest.approx(at + ends_at)
    assert script.learnt_s == pytest.approx(ends_at), "what was told is what it took"


def test_an_execution_that_begins_beside_a_load_is_slow_until_that_ends() -> None:
    jobs = [job(0, "a", 5, 1), job(0, "b", 1, 3)]
    script = Script(load(0, A), load(2, B), execute(3, 0), execute(9, 1))
    outcome = World(jobs, script, SLOW, check=True).run()
    assert outcome.latency_s == [pytest.approx(2 + 3 + 3.4), pytest.approx(10)], (
        "2 s of 5 s were 1.6 s of work"
    )


def test_without_overlap_nothing_is_slowed() -> None:
    jobs = drawn(3, 200)
    setting = Setting(2, overlaps=False)
    for name in POLICIES:
        found = [
            World(jobs, make_policy(name, hold_s=3, bypass_max_s=9), each, check=True).run()
            for each in (setting, replace(setting, overlap_slowdown=0.5))
        ]
        assert found[0].latency_s == pytest.approx(found[1].latency_s), name


def overlapped_s(outcome: Outcome, start: float, end: float) -> float:
    return sum(max(0.0, min(end, at + load_s) - max(start, at)) for at, _, load_s in outcome.loads)


@settings(deadline=None)
@given(small_traces(hints="abcde"), st.sampled_from([0.2, 1.0, 3.0]))
def test_work_done_is_time_passed_less_what_the_loads_beside_it_cost(
    jobs: list[Job], slowdown: float
) -> None:
    # One runner that never loads in its slot: every load of the outcome ran beside whatever was executing.
    setting = replace(SLOW, models_max=2, overlap_slowdown=slowdown)
    outcome = World(jobs, Auto(), setting, check=True).run()
    for one, start, latency in zip(jobs, outcome.started_s, outcome.latency_s, strict=True):
        end = one.t_s + latency
        beside_s = overlapped_s(outcome, start, end)
        assert end - start - beside_s * slowdown / (1 + slowdown) == pytest.approx(one.exec_s, abs=1e-6)


def test_the_traces_above_do_overlap() -> None:
    jobs = drawn(5, 300)
    outcome = World(jobs, Auto(), replace(SLOW, runners=1), check=True).run()
    ends = [j.t_s + latency for j, latency in zip(jobs, outcome.latency_s, strict=True)]
    slowed = sum(overlapped_s(outcome, s, e) > 0 for s, e in zip(outcome.started_s, ends, strict=True))
    assert slowed > 30
