"""Histories of whole fleets; a failure prints its seed, ``python -m tests.sim --seed N`` replays it."""

from __future__ import annotations

from collections import Counter

import pytest

from falctl.core.policies import POLICIES
from tests.sim.world import BYPASS_MAX_S, TICK_S, World

SEEDS = range(60)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_request_is_answered_exactly_once_whatever_the_hosts_do(policy: str) -> None:
    fates: Counter[str] = Counter()
    for seed in SEEDS:
        world = World(seed, policy=policy)
        try:
            world.run(120, over_s=100.0)
        except AssertionError as error:
            pytest.fail(f"python -m tests.sim --seed {seed} --policy {policy}: {error}")
        fates.update(world.fate.values())
    assert fates["served"] > 0.5 * 120 * len(SEEDS)
    assert fates["runner_lost"] > 0, "the histories hold deaths"
    assert fates["queue_full"] > 0, "the histories hold overload"
    assert fates["client_queue_full"] > 0, "the histories hold a client that asks for more than its share"
    assert fates["left"] > 0, "the histories hold clients that leave"


def test_nobody_is_passed_by_a_younger_request_beyond_the_bound() -> None:
    worst = 0.0
    for seed in SEEDS:
        world = World(seed, policy="affinity")
        world.run(120, over_s=100.0)
        worst = max(worst, world.bypass_max_s)
        assert world.bypass_max_s <= BYPASS_MAX_S + TICK_S, f"python -m tests.sim --seed {seed}"
    assert worst > 0.9 * BYPASS_MAX_S, "the histories reach the bound"


def test_affinity_loads_less_than_the_others_on_the_same_histories() -> None:
    loads = dict.fromkeys(POLICIES, 0)
    for policy in POLICIES:
        for seed in SEEDS:
            world = World(seed, policy=policy)
            world.run(80, over_s=200.0)
            loads[policy] += world.loads
    assert loads["affinity"] < 0.8 * loads["fal"] < loads["least-loaded"]


def test_one_seed_is_one_history() -> None:
    first, second = World(17, policy="affinity"), World(17, policy="affinity")
    first.run(100, over_s=80.0)
    second.run(100, over_s=80.0)
    assert first.fate == second.fate
    assert first.loads == second.loads
