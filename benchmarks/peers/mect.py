"""
Minimum expected completion time: ServerlessLLM's choice of server (OSDI '24), with the queue counted in.

A request goes, as it arrives, to the runner where it would end first: what executes there now, the loads and
executions of what is bound there, its own load unless its model will be resident. It is told true costs by the
replay; an estimator would know them no better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Final

from benchmarks.peers._bound import Bound, size
from falctl.core.demand import erlang_b
from falctl.core.fleet import Runner
from falctl.core.policies.base import Move, State
from falctl.core.queue import Waiting
from falctl.core.types import Hint, RequestId, RunnerId
from falctl.replay.trace import Job

HALF_LIFE: Final = 400
"""Requests after which an arrival counts half in the rate of its model."""
EXEC_PRIOR_S: Final = 4.0
"""Execution time of a model that has not run yet, in the value of its copies."""


class MectLru(Bound):
    """The rule, evicting the least recently used model of the runner."""

    def __init__(self, seed: int = 1) -> None:
        super().__init__()
        self._random = Random(seed)
        self._jobs: dict[RequestId, Job] = {}
        self._until: dict[RunnerId, float] = {}

    def foresee(self, jobs: Sequence[Job]) -> None:
        """Take in true costs."""
        self._jobs = {RequestId(str(i)): job for i, job in enumerate(jobs)}

    def pick(self, waiting: Waiting, state: State, *, now: float) -> Runner:
        """Return a runner, always; among equals one at random."""
        best: tuple[float, Runner] | None = None
        for runner in state.fleet.runners.values():
            ends_s = self._ends_s(waiting, runner, now)
            sooner = best is None or ends_s < best[0] - 1e-9
            if sooner or (best and abs(ends_s - best[0]) < 1e-9 and self._random.random() < 0.5):
                best = ends_s, runner
        assert best is not None
        return best[1]

    def begun(self, waiting: Waiting, runner: Runner, *, cold: bool, now: float) -> None:
        """Note when *runner* will be free again."""
        job = self._jobs[waiting.request]
        self._until[runner.runner] = now + job.exec_s + (job.load_s if cold else 0.0)

    def _ends_s(self, waiting: Waiting, runner: Runner, now: float) -> float:
        busy = bool(runner.in_use or runner.loading)
        ends_s = max(0.0, self._until[runner.runner] - now) if busy else 0.0
        there = {None, *(runner.hints or ()), *runner.loading}
        ahead = list(self.queue(runner))[
            1 if runner.loading else 0 :
        ]  # a load's request is counted in _until
        for other in ahead:
            job = self._jobs[other.request]
            if other.hint not in there:
                there.add(other.hint)
                ends_s += job.load_s
            ends_s += job.exec_s
        return ends_s + (0.0 if waiting.hint in there else self._jobs[waiting.request].load_s)


class Mect(MectLru):
    """
    The rule, evicting the copy that saves the least load time per second and byte.

    A copy saves rate x load x (Erlang B of one copy less - Erlang B). Rates decay with a half-life of `HALF_LIFE`
    mean gaps of the whole trace.
    """

    def __init__(self, seed: int = 1) -> None:
        super().__init__(seed)
        self._rates = _Rates()
        self._seen = 0
        self._exec_s: dict[Hint, float] = {}
        self._load_s: dict[Hint, float] = {}

    def foresee(self, jobs: Sequence[Job]) -> None:
        """Take in true costs, and how far apart arrivals are."""
        super().foresee(jobs)
        self._load_s = {job.hint: job.load_s for job in jobs}
        self._rates = _Rates(HALF_LIFE * max(jobs[-1].t_s - jobs[0].t_s, 1e-9) / len(jobs))

    def choose(self, state: State, *, now: float) -> Move | None:
        """Count what has come before anything is decided."""
        if len(state.queue) > len(self._bound):
            for waiting in state.queue:
                if waiting.order > self._seen and waiting.hint is not None:
                    self._rates.add(waiting.hint, now)
                self._seen = max(self._seen, waiting.order)
        return super().choose(state, now=now)

    def begun(self, waiting: Waiting, runner: Runner, *, cold: bool, now: float) -> None:
        """Learn the execution time, which the rule may know as soon as it begins."""
        super().begun(waiting, runner, cold=cold, now=now)
        if waiting.hint is not None:
            exec_s = self._jobs[waiting.request].exec_s
            known = self._exec_s.get(waiting.hint, exec_s)
            self._exec_s[waiting.hint] = 0.9 * known + 0.1 * exec_s

    def evicted(self, hint: Hint, runner: Runner, state: State, *, now: float) -> list[Hint]:
        """Return what *runner* may evict, the least valuable byte first."""
        return sorted(
            runner.hints or (), key=lambda h: (self._value(h, state, now) / size(h, runner, state), h)
        )

    def _value(self, hint: Hint, state: State, now: float) -> float:
        copies = sum(hint in (r.hints or ()) or hint in r.loading for r in state.fleet.runners.values())
        rate = self._rates.rate(hint, now)
        offered = rate * self._exec_s.get(hint, EXEC_PRIOR_S)
        return rate * self._load_s[hint] * (erlang_b(offered, copies - 1) - erlang_b(offered, copies))


class _Rates:
    """Arrivals per second by model, decayed, counted from instant 0, where the traces at hand begin."""

    def __init__(self, half_life_s: float = 1.0) -> None:
        self.half_life_s = half_life_s
        self._counts: dict[Hint, tuple[float, float]] = {}

    def add(self, hint: Hint, now: float) -> None:
        self._counts[hint] = (self._count(hint, now) + 1, now)

    def rate(self, hint: Hint, now: float) -> float:
        seen: float = 1 - 0.5 ** (max(now, 1e-9) / self.half_life_s)
        return self._count(hint, now) / max(self.half_life_s / math.log(2) * seen, 1.0)

    def _count(self, hint: Hint, now: float) -> float:
        count, at = self._counts.get(hint, (0.0, now))
        kept: float = 0.5 ** ((now - at) / self.half_life_s)
        return count * kept
