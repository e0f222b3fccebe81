"""The figures, against what five requests give on paper; the bounds, against every possible choice."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falctl.core.policies import Fal
from falctl.core.types import Hint
from falctl.replay.report import belady_misses, bounds, fifo_starts, figures, pfoo_misses
from falctl.replay.trace import Job
from falctl.replay.world import Outcome, Setting, World
from tests.replay.traces import five, job, small_traces

HINTS = st.lists(st.sampled_from("abcd").map(Hint), min_size=1, max_size=10)


def test_the_figures_of_five_requests_are_what_paper_says() -> None:
    setting = Setting(runners=1, models_max=1)
    outcome = World(five(), Fal(), setting, check=True).run()
    # The first loads 4 s and runs 2; the second runs 6 to 8; the third loads to 11 and runs to 12; the fourth finds
    # its model at 30; the fifth loads again, 31 to 35.
    assert outcome.latency_s == [6, 7, 10, 1, 6]
    assert outcome.started_s == [4, 6, 11, 30, 35]
    assert outcome.loads == [(0, "a", 4), (8, "b", 3), (31, "a", 4)]
    found = figures(five(), outcome, runners=1)
    assert found.requests == 5
    assert found.loads_per_1k == 600
    assert found.load_s_per_request == pytest.approx(11 / 5)
    assert found.mean_s == 6
    assert (found.p50_s, found.p95_s, found.p99_s, found.max_s) == (6, 10, 10, 10)
    assert found.slo_pct == 80, "10 s is more than 3 x 1 s + 5 s"
    assert found.max_bypass_s == 7, "the third began at 11; free loads would have let it begin at 4"


def test_the_bounds_of_five_requests_are_what_paper_says() -> None:
    least = bounds(five(), Setting(runners=1, models_max=1))
    assert least.min_loads_per_1k == 600, "a, then b, then a again"
    assert least.zero_load_mean_s == pytest.approx(11 / 5)
    assert least.zero_load_p50_s == 2
    assert (least.zero_load_p95_s, least.zero_load_p99_s, least.zero_load_max_s) == (3, 3, 3)
    assert least.zero_load_slo_pct == 100
    assert bounds(five(), Setting(runners=2, models_max=1)).min_loads_per_1k == 400, "one of each"
    assert bounds(five(), Setting(runners=1, models_max=None)).min_loads_per_1k == 400


def test_a_service_level_is_met_at_three_executions_and_five_seconds_exactly() -> None:
    jobs = [job(0, "a", 1.0), job(0, "a", 1.0)]
    assert figures(jobs, Outcome([8.0, 8.001], [0.0, 0.0]), runners=2).slo_pct == 50


def test_requests_without_a_hint_need_no_load_in_any_bound() -> None:
    jobs = [job(0, ""), job(1, "a"), job(2, "")]
    assert bounds(jobs, Setting(runners=1, models_max=1)).min_loads_per_1k == pytest.approx(1000 / 3)
    assert bounds(jobs, Setting(1, None, vram_bytes=10)).min_loads_per_1k == pytest.approx(1000 / 3)


# --- MIN: no choice of victims misses less ---------------------------------------------------------


def fewest_misses(hints: Sequence[Hint], capacity: int, sizes: dict[Hint, int]) -> int:
    """Try every set of victims at every miss."""

    @cache
    def misses(i: int, resident: frozenset[Hint]) -> int:
        if i == len(hints):
            return 0
        if hints[i] in resident:
            return misses(i + 1, resident)
        kept = (
            frozenset(some) | {hints[i]}
            for n in range(len(resident) + 1)
            for some in combinations(resident, n)
        )
        return 1 + min(misses(i + 1, k) for k in kept if sum(sizes[h] for h in k) <= capacity)

    return misses(0, frozenset())


@given(hints=HINTS, slots=st.integers(1, 4))
def test_belady_is_the_best_choice_of_victims(hints: list[Hint], slots: int) -> None:
    assert belady_misses(hints, slots) == fewest_misses(hints, slots, dict.fromkeys(hints, 1))


@given(hints=HINTS, capacity=st.integers(4, 10), data=st.data())
def test_no_choice_of_victims_misses_less_than_the_bound_in_bytes(
    hints: list[Hint], capacity: int, data: st.DataObject
) -> None:
    sizes = {hint: data.draw(st.integers(1, 4), label=hint) for hint in dict.fromkeys(hints)}
    bound = pfoo_misses(hints, sizes, capacity)
    assert len(set(hints)) <= bound <= fewest_misses(hints, capacity, sizes)


def test_the_bound_in_bytes_is_not_idle() -> None:
    thrash = [Hint(h) for h in "abcabcabcabc"]
    sizes = {Hint("a"): 2, Hint("b"): 2, Hint("c"): 2}
    assert pfoo_misses(thrash, sizes, 6) == 3
    assert pfoo_misses(thrash, sizes, 2) == 8, "12 x 2 bytes pay for 4 of the intervals of 3 x 2 bytes"


# --- first come, first served ----------------------------------------------------------------------


def served_in_order(jobs: Sequence[Job], runners: int) -> list[float]:
    """Let each runner be a list of what it did; whoever is free first takes the next."""
    done: list[list[float]] = [[float("-inf")] for _ in range(runners)]
    starts = []
    for j in jobs:
        runner = min(done, key=lambda ends: ends[-1])
        starts.append(max(j.t_s, runner[-1]))
        runner.append(starts[-1] + j.exec_s)
    return starts


@given(jobs=small_traces(), runners=st.integers(1, 3))
def test_starts_first_come_first_served_are_those_of_a_queue_of_runners(
    jobs: list[Job], runners: int
) -> None:
    starts = fifo_starts(jobs, runners)
    assert starts == served_in_order(jobs, runners)
    for start in starts:
        running = sum(s <= start < s + j.exec_s for s, j in zip(starts, jobs, strict=True))
        assert running <= runners


def test_a_trace_may_begin_before_zero() -> None:
    assert fifo_starts([job(-5, "a", 1), job(-5, "a", 1)], 1) == [-5, -4]


@given(jobs=small_traces(hints="abc"), runners=st.integers(1, 3))
def test_in_order_of_arrival_nobody_beats_the_bounds(jobs: list[Job], runners: int) -> None:
    setting = Setting(runners=runners, models_max=1)
    least = bounds(jobs, setting)
    found = figures(jobs, World(jobs, Fal(), setting).run(), runners=runners)
    if runners == 1:  # with several, fal starts in order but a runner's cache is its own
        assert found.mean_s >= least.zero_load_mean_s - 1e-9
    assert found.loads_per_1k >= least.min_loads_per_1k - 1e-9
