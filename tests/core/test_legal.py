"""Moves that cannot be made are told apart from those that can, in words."""

from __future__ import annotations

import pytest

from falctl.core.events import Arrived, RunnerUp
from falctl.core.policies import Execute, LoadModel, State
from falctl.core.policies.legal import fault
from falctl.core.scheduler import Scheduler
from falctl.core.types import Caps, Epoch, Hint, RequestId, RunnerId, Wanted

A, B, R0, R1, R2 = Hint("a"), Hint("b"), RunnerId(0), RunnerId(1), RunnerId(2)


class Once:
    """Sends the first request to runner 0, then nothing."""

    def choose(self, state: State, *, now: float) -> Execute | None:
        return Execute(RequestId("1"), R0, "") if RequestId("1") in state.queue else None


def state() -> State:
    """Return one where runner 0 executes `a`, runner 1 is idle and full, runner 2 only gives hints, and `2` waits."""
    scheduler = Scheduler(Once(), queue_max=9)
    caps = Caps(loads=True, overlaps=True, models_max=1)
    scheduler.handle(RunnerUp(R0, Epoch(1), 1, (), frozenset({A}), caps), now=0.0)
    scheduler.handle(RunnerUp(R1, Epoch(1), 1, (), frozenset({B}), caps), now=0.0)
    scheduler.handle(RunnerUp(R2, Epoch(1), 1, (), frozenset()), now=0.0)
    for name in "12":
        scheduler.handle(Arrived(RequestId(name), Wanted(A, "header"), ""), now=0.0)
    return scheduler.state


@pytest.mark.parametrize(
    "move", [None, Execute(RequestId("2"), R1, ""), LoadModel(A, R1, (B,), ""), LoadModel(B, R0, (), "")]
)
def test_what_can_be_made_has_no_fault(move: object) -> None:
    assert fault(state(), move) is None


@pytest.mark.parametrize(
    ("move", "words"),
    [
        (Execute(RequestId("1"), R1, ""), "'1' does not wait"),
        (Execute(RequestId("2"), RunnerId(7), ""), "no runner 7"),
        (Execute(RequestId("2"), R0, ""), "runner 0 has no free slot"),
        (LoadModel(A, RunnerId(7), (), ""), "no runner 7"),
        (LoadModel(A, R2, (), ""), "runner 2 cannot load"),
        (LoadModel(B, R1, (), ""), "'b' is resident on runner 1"),
        (LoadModel(B, R0, (A,), ""), "'a' executes on runner 0"),
        ("auto", "choose() returned str"),
    ],
)
def test_what_cannot_be_made_is_told(move: object, words: str) -> None:
    assert words in (fault(state(), move) or "")


def test_a_pinned_victim_is_told() -> None:
    known = state()
    known.fleet.runners[R1].pinned = frozenset({B})
    assert "'b' is pinned on runner 1" in (fault(known, LoadModel(A, R1, (B,), "")) or "")
