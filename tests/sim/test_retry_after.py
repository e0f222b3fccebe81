"""What a refused client is told, against what happens then, on fleets under overload."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from statistics import fmean

import pytest

from falctl.core.events import Action, Dispatch, Event, Refuse
from falctl.core.policies import make_policy
from falctl.core.scheduler import Scheduler
from falctl.core.types import Hint
from falctl.replay.trace import Job
from falctl.replay.world import Setting, World


@dataclass(slots=True)
class Observed(Scheduler):
    """A scheduler that remembers its refusals and, by client, when a place of the queue turned free."""

    refused: list[tuple[float, Refuse, str]] = field(default_factory=list)
    freed: list[tuple[float, str]] = field(default_factory=list)

    def handle(self, event: Event, *, now: float) -> list[Action]:
        clients = {w.request: w.client for w in self.state.queue}
        actions = Scheduler.handle(self, event, now=now)
        for action in actions:
            if isinstance(action, Refuse):
                self.refused.append((now, action, getattr(event, "client", "")))
            elif isinstance(action, Dispatch) and action.request in clients:
                self.freed.append((now, clients[action.request]))
        return actions


def overload(seed: int, *, runners: int) -> list[Job]:
    """Three clients, one of them greedy, ask for half as much again as the fleet can do."""
    rng = Random(seed)
    jobs, at = [], 0.0
    for n in range(1500):
        at += rng.expovariate(1.5 * runners / 3.0)
        model = min(int(rng.paretovariate(0.8)), 12)
        client = "c0" if n % 2 else f"c{n % 3}"
        jobs.append(Job(at, Hint(f"m{model}"), rng.expovariate(1 / 3.0), 6.0, 10**9, client))
    return jobs


@pytest.mark.parametrize("policy", ["auto", "affinity", "least-loaded"])
@pytest.mark.parametrize("client_max", [0, 15])
def test_a_place_is_free_about_when_the_refused_were_told(policy: str, client_max: int) -> None:
    ratios: list[float] = []
    for seed in range(4):
        jobs = overload(seed, runners=3)
        world = World(jobs, make_policy(policy, hold_s=10.0, bypass_max_s=30.0), Setting(3))
        queue_max = 1000 if client_max else 30
        observed = world.scheduler = Observed(world.scheduler.policy, queue_max, client_max)
        world.run()
        assert len(observed.refused) > 100, "the fleet is overloaded"
        told, came = [], []
        for at, refusal, client in observed.refused:
            assert refusal.retry_after_s is not None
            assert refusal.code == ("client_queue_full" if client_max else "queue_full")
            free_at = next((t for t, c in observed.freed if t > at and (c == client or not client_max)), None)
            if free_at is not None:
                told.append(refusal.retry_after_s)
                came.append(free_at - at)
        ratios.append(fmean(told) / fmean(came))
    assert all(0.5 < ratio < 2.0 for ratio in ratios), ratios
