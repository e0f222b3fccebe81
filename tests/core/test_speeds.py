"""Speeds of cards: what is told apart, what is chance, and what a new card is taken for."""

from __future__ import annotations

from random import Random
from statistics import fmean

import pytest

from falctl.core.events import Action, Arrived, Dispatch, Load, RunnerUp
from falctl.core.policies import Auto
from falctl.core.scheduler import Scheduler
from falctl.core.speeds import USUAL_LEAST, Speeds
from falctl.core.types import Caps, Epoch, Hint, RequestId, RunnerId, Wanted

HINTS = [Hint(name) for name in "abcdef"]
SECONDS = dict(zip(HINTS, (0.5, 1.0, 2.0, 4.0, 8.0, 30.0), strict=True))


def run(speeds: Speeds, factors: dict[str, float], *, times: int, seed: int = 1, noise: float = 0.15) -> None:
    """Let each card run what it happens to get, so many times."""
    rng = Random(seed)
    for _ in range(times):
        for card, factor in factors.items():
            hint = rng.choice(HINTS)
            speeds.learn(card, hint, SECONDS[hint] * factor * rng.lognormvariate(0.0, noise))


def test_equal_cards_are_equal_however_their_executions_scatter() -> None:
    for seed in range(10):
        speeds = Speeds()
        run(speeds, {"x#0": 1.0, "x#1": 1.0, "x#2": 1.0}, times=300, seed=seed)
        assert all(0.9 < speeds.factor(f"x#{n}") < 1.1 for n in range(3))


def test_a_slow_card_among_cards_of_one_model_is_known_by_its_factor() -> None:
    speeds = Speeds()
    run(speeds, {"x#0": 1.0, "x#1": 1.0, "x#2": 2.0}, times=100)
    assert speeds.factor("x#2") / speeds.factor("x#0") == pytest.approx(2.0, rel=0.15)


def test_a_card_that_becomes_throttled_is_known_after_a_few_executions() -> None:
    speeds = Speeds()
    run(speeds, {"x#0": 1.0, "x#1": 1.0}, times=200)
    run(speeds, {"x#0": 1.0, "x#1": 3.0}, times=25)
    assert speeds.factor("x#1") > 1.5 * speeds.factor("x#0")
    run(speeds, {"x#0": 1.0, "x#1": 1.0}, times=150)
    assert speeds.factor("x#1") < 1.2 * speeds.factor("x#0")


def test_it_is_known_also_while_nobody_else_runs_its_models() -> None:
    speeds = Speeds()
    mine = {"x#0": HINTS[:3], "x#1": HINTS[3:]}
    rng = Random(3)
    for factor, times in ((1.0, 200), (3.0, 30)):
        for _ in range(times):
            for card, hints in mine.items():
                hint = rng.choice(hints)
                slow = factor if card == "x#1" else 1.0
                speeds.learn(card, hint, SECONDS[hint] * slow * rng.lognormvariate(0.0, 0.15))
    assert speeds.factor("x#1") > 1.7 * speeds.factor("x#0")


def test_speeds_and_usual_times_do_not_drift_against_each_other() -> None:
    speeds, factors = Speeds(), {"x#0": 1.0, "x#1": 4.0}
    run(speeds, factors, times=300)
    before = speeds.factor("x#0") * speeds.factor("x#1")
    run(speeds, factors, times=3000)
    assert before == pytest.approx(1.0, rel=0.01)
    assert speeds.factor("x#0") * speeds.factor("x#1") == pytest.approx(1.0, rel=0.01)


def test_one_stall_says_nothing_about_a_card() -> None:
    speeds = Speeds()
    run(speeds, {"x#0": 1.0, "x#1": 1.0}, times=200)
    speeds.learn("x#0", HINTS[0], 10_000.0)
    assert speeds.factor("x#0") < 1.15


def test_a_new_card_is_taken_for_one_of_its_model() -> None:
    speeds = Speeds()
    run(speeds, {"fast#0": 1.0, "slow#1": 3.0, "slow#2": 3.0}, times=100)
    known = fmean((speeds.factor("slow#1"), speeds.factor("slow#2")))
    assert speeds.factor("slow#3") == pytest.approx(known, rel=0.05)
    assert speeds.factor("slow") == speeds.factor("slow#3")
    assert speeds.factor("other#4") == 1.0
    speeds.learn("slow#3", HINTS[1], 3.0)
    assert speeds.factor("slow#3") > speeds.factor("fast#0"), "one execution does not undo that"


def test_a_hint_says_nothing_about_cards_before_it_is_known_itself() -> None:
    speeds = Speeds()
    for n in range(USUAL_LEAST):
        speeds.learn(f"x#{n % 2}", HINTS[0], 1.0 + 9.0 * (n % 2))
    assert speeds.dump()["cards"] == []
    speeds.learn("x#0", HINTS[0], 1.0)
    assert [row[0] for row in speeds.dump()["cards"]] == ["x#0"]
    assert speeds.factor("x#0") == 1.0, "there is no other to be compared with"


def fleet(slow: int, *, hints: tuple[str, str]) -> Scheduler:
    """Return `auto` over two runners of one model that hold these models; one of them is known as four times as slow."""
    scheduler = Scheduler(Auto(), queue_max=99)
    caps = Caps(gpu="x", loads=True, overlaps=True, models_max=2)
    run(scheduler.state.costs._speeds, {f"x#{slow}": 4.0, f"x#{1 - slow}": 1.0}, times=200)
    for runner, held in enumerate(hints):
        resident = frozenset(map(Hint, held.split()))
        scheduler.handle(RunnerUp(RunnerId(runner), Epoch(1), 1, (), resident, caps), now=0.0)
    return scheduler


@pytest.mark.parametrize("slow", [0, 1])
def test_of_two_that_are_warm_the_faster_one_is_taken(slow: int) -> None:
    scheduler = fleet(slow, hints=("m", "m"))
    [action] = scheduler.handle(Arrived(RequestId("1"), Wanted(Hint("m"), "header"), ""), now=1.0)
    assert isinstance(action, Dispatch)
    assert action.runner == 1 - slow


@pytest.mark.parametrize("slow", [0, 1])
def test_a_model_is_loaded_where_what_waits_is_done_sooner(slow: int) -> None:
    scheduler = fleet(slow, hints=("m", "n"))
    actions: list[Action] = []
    for n, name in enumerate(("", "", "m", "n", "m", "n", "new")):
        wanted = Wanted(Hint(name), "header") if name else None
        actions = scheduler.handle(Arrived(RequestId(f"{name}{n}"), wanted, ""), now=1.0)
    [load] = actions
    assert isinstance(load, Load)
    assert load.runner == 1 - slow
