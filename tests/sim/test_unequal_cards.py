"""Fleets whose cards are not equally fast: what is learnt serves about as well as the truth would."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from random import Random
from statistics import fmean

from falctl.core.costs import Costs
from falctl.core.policies import Auto
from falctl.core.types import Hint, RequestId, RunnerId
from falctl.replay.report import figures
from falctl.replay.trace import Job
from falctl.replay.world import Setting, World

SECONDS = 2400.0
ALWAYS = -1.0
SEEDS = range(2)
EQUAL_SHARE = 0.25


@dataclass(slots=True)
class Told(Costs):
    """Costs that are told the truth about every card."""

    setting: Setting = field(default_factory=lambda: Setting(1))
    world: World | None = None

    def speed(self, card: str) -> float:
        assert self.world is not None
        if not card:
            return 1.0
        return self.setting.slowness(int(card.rpartition("#")[2]), self.world.now)


class Counted(World):
    """Counts what each runner executes, from `since` on."""

    since = ALWAYS

    def _execute(self, request: RequestId, runner: RunnerId) -> None:
        if self.now >= self.since:
            self.executions[runner] += 1
        super()._execute(request, runner)

    def play(self) -> float:
        """Return the mean latency; seconds."""
        self.executions: Counter[int] = Counter()
        return figures(self.jobs, self.run(), runners=self.setting.runners).mean_s


@cache
def jobs_of(seed: int) -> tuple[Job, ...]:
    """Return requests that keep four equal cards busy for 45 % of the time."""
    rng, jobs, at = Random(seed), [], 0.0
    while at < SECONDS:
        at += rng.expovariate(4 * 0.45 / 3.0)
        model = min(int(rng.paretovariate(0.8)), 15)
        exec_s = (1.0 + model % 5) * rng.lognormvariate(0.0, 0.15)
        jobs.append(Job(at, Hint(f"m{model}"), exec_s, 8.0, 10**9, f"c{rng.randrange(20)}"))
    return tuple(jobs)


def mean_and_share(factor: float, *, oracle: bool, since: float) -> list[float]:
    """Return mean latency, and the share of a card that is *factor* times slower *since* then: each card in turn is it."""
    found = []
    for slow in range(4):
        for seed in SEEDS:
            setting = Setting(4, slower=((since, slow, factor),))
            world = Counted(jobs_of(seed), Auto(), setting)
            world.since = since
            if oracle:
                world.scheduler.state.costs = Told(setting=setting, world=world)
            mean_s = world.play()
            found.append((mean_s, world.executions[slow] / world.executions.total()))
    return [fmean(column) for column in zip(*found, strict=True)]


def test_a_card_that_is_twice_as_slow_gets_less_and_costs_little_more_than_if_that_were_known() -> None:
    learnt_s, share = mean_and_share(2.0, oracle=False, since=ALWAYS)
    told_s, told_share = mean_and_share(2.0, oracle=True, since=ALWAYS)
    assert share < 0.9 * EQUAL_SHARE
    assert abs(share - told_share) < 0.03
    assert learnt_s < 1.07 * told_s, (learnt_s, told_s)


def test_a_card_that_becomes_throttled_gets_less_from_then_on() -> None:
    learnt_s, after = mean_and_share(3.0, oracle=False, since=SECONDS / 2)
    told_s, _ = mean_and_share(3.0, oracle=True, since=SECONDS / 2)
    assert after < 0.85 * EQUAL_SHARE
    assert learnt_s < 1.07 * told_s, (learnt_s, told_s)


def test_on_cards_of_unequal_memory_large_models_go_where_they_fit_and_nobody_waits_for_ever() -> None:
    for seed in range(3):
        rng = Random(seed)
        sizes = {Hint(f"m{n}"): rng.choice((3, 6, 12, 20)) * 10**9 for n in range(10)}
        jobs, at = [], 0.0
        for n in range(400):
            at += rng.expovariate(0.5)
            hint = rng.choice(list(sizes))
            jobs.append(Job(at, hint, rng.uniform(1, 4), 6.0, sizes[hint], f"c{n % 5}"))
        setting = Setting(3, models_max=None, vram_each=(8 * 10**9, 16 * 10**9, 24 * 10**9))
        # The world asserts that no card is ever asked to hold more than it can.
        outcome = World(jobs, Auto(), setting, check=True).run()
        assert outcome.refused == 0
        huge = [*jobs, Job(at + 1.0, Hint("huge"), 1.0, 6.0, 30 * 10**9, "c0")]
        assert World(huge, Auto(), setting, check=True).run().refused == 1
