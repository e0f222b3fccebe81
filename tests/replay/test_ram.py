"""A simulated fleet with host memory: what was loaded comes back from there, and is decided for accordingly."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falctl.core.policies import POLICIES, Auto, Fal, make_policy
from falctl.core.types import Hint
from falctl.replay.ram import HostRam
from falctl.replay.report import figures
from falctl.replay.trace import Job, read_trace
from falctl.replay.world import Setting, World
from tests.replay.traces import drawn, job, small_traces
from tests.replay.written import write_trace

A, B, C = map(Hint, "abc")
ALONE = Setting(runners=1, models_max=1, ram=2, ram_load=0.5)


def loads(jobs: Iterable[Job], setting: Setting) -> list[tuple[str, float]]:
    outcome = World(list(jobs), Fal(), setting, check=True).run()
    return [(hint, load_s) for _, hint, load_s in outcome.loads]


def turns(order: str) -> list[Job]:
    """Return requests for the models of *order*, far apart; each takes 4 s to load."""
    return [job(100.0 * i, hint) for i, hint in enumerate(order)]


def test_what_left_the_card_comes_back_from_host_memory() -> None:
    assert loads(turns("aba"), ALONE) == [("a", 4), ("b", 4), ("a", 2)]
    assert loads(turns("aba"), replace(ALONE, ram=0)) == [("a", 4), ("b", 4), ("a", 4)]


def test_host_memory_keeps_what_was_used_last() -> None:
    assert loads(turns("abcba"), ALONE)[3:] == [("b", 2), ("a", 4)]
    assert loads(turns("abaca"), ALONE)[4:] == [("a", 2)], "its use counts, not only its first load"


def test_all_runners_share_host_memory() -> None:
    # Runner 0 loads b, then c; runner 1 loads a, and is the one that is free when b is wanted again.
    jobs = [job(0, "b"), job(10, "a", 100), job(20, "c"), job(30, "c", 200), job(120, "b")]
    setting = Setting(runners=2, models_max=1, ram=3, ram_load=0.5)
    assert loads(jobs, setting) == [("b", 4), ("a", 4), ("c", 4), ("b", 2)]


def test_the_trace_says_what_a_load_from_host_memory_takes(tmp_path: Path) -> None:
    jobs = [replace(job, ram_load_s=1.25) for job in turns("aba")]
    assert loads(jobs, ALONE) == [("a", 4), ("b", 4), ("a", 1.25)]
    write_trace(tmp_path / "trace.csv", jobs)
    assert read_trace(tmp_path / "trace.csv") == jobs
    assert [j.ram_load_s for j in read_trace(tmp_path / "trace.csv", load_factor=2.0)] == [2.5] * 3


def test_memory_counts_bytes_where_cards_do() -> None:
    ram = HostRam(25, {A: 10, B: 20, C: 30}.__getitem__)
    assert ram.put(A)
    assert not ram.put(A), "it is there"
    assert not ram.put(C), "it fits never"
    assert ram.held == {A}
    assert ram.put(B)
    assert ram.held == {B}
    ram.use(A)
    assert (A in ram, B in ram) == (False, True)


@given(st.lists(st.sampled_from([A, B, C]), max_size=20), st.integers(0, 60))
def test_memory_never_holds_more_than_its_limit(order: list[Hint], limit: int) -> None:
    sizes = {A: 10, B: 20, C: 30}
    ram = HostRam(limit, sizes.__getitem__)
    for hint in order:
        ram.put(hint)
        assert sum(sizes[h] for h in ram.held) <= limit
        assert (hint in ram) == (sizes[hint] <= limit)


@given(small_traces(), st.sampled_from(POLICIES), st.booleans(), st.booleans(), st.integers(1, 4))
def test_every_rule_of_the_scheduler_holds_with_tiers(
    jobs: list[Job], name: str, by_bytes: bool, overlaps: bool, ram: int
) -> None:
    setting = Setting(2, None, 60, ram=20.0 * ram) if by_bytes else Setting(2, 1, ram=ram)
    policy = make_policy(name, hold_s=5, bypass_max_s=20)
    World(jobs, policy, replace(setting, overlaps=overlaps), check=True).run()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("loads", [True, False])
def test_a_fleet_whose_host_memory_is_ten_times_as_fast_waits_less_for_loads(
    seed: int, *, loads: bool
) -> None:
    jobs = drawn(seed)
    without, with_it = (
        figures(jobs, World(jobs, Auto(), setting, check=True).run(), runners=2)
        for setting in (Setting(2, 3, loads=loads), Setting(2, 3, loads=loads, ram=12))
    )
    assert with_it.load_s_per_request < 0.7 * without.load_s_per_request
    assert with_it.mean_s < without.mean_s


@pytest.mark.parametrize("told", [True, False])
def test_a_scheduler_that_is_not_told_of_tiers_sees_only_how_long_loads_take(*, told: bool) -> None:
    world = World(turns("aba"), Fal(), replace(ALONE, tells_tiers=told))
    outcome = world.run()
    assert [load_s for *_, load_s in outcome.loads] == [4, 4, 2]
    (runner,) = world.scheduler.fleet.runners.values()
    assert runner.in_ram == ({A, B} if told else set())
    learnt_s = world.scheduler.state.costs.load_s(A)
    assert learnt_s == 4 if told else learnt_s < 4, "told of none, it takes the cheap load for one from disk"
