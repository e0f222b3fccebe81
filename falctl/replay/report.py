"""What is said of a replay: loads, latencies, service levels, and the bounds that nobody can beat."""

from __future__ import annotations

import heapq
from collections import defaultdict
from dataclasses import dataclass

from falctl.core.types import Hint
from falctl.replay.trace import Job
from falctl.replay.world import Outcome


@dataclass(frozen=True, slots=True)
class Figures:
    """One policy on one trace. ``slo_pct``: latency at most 3 x execution + 5 s."""

    requests: int
    loads_per_1k: float
    load_s_per_request: float
    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    max_s: float
    slo_pct: float
    max_bypass_s: float


@dataclass(frozen=True, slots=True)
class Bounds:
    """Offline MIN (Belady) on one cache of all slots; and first come first served with free loads."""

    min_loads_per_1k: float
    zero_load_mean_s: float
    zero_load_p99_s: float


def figures(jobs: list[Job], outcome: Outcome, *, runners: int) -> Figures:
    """Return the figures of a replay."""
    ordered = sorted(outcome.latency_s)
    n = len(jobs)
    free = fifo_starts(jobs, runners)
    met = sum(latency <= 3 * job.exec_s + 5 for latency, job in zip(outcome.latency_s, jobs, strict=True))
    return Figures(
        requests=n,
        loads_per_1k=1000 * len(outcome.loads) / n,
        load_s_per_request=sum(load_s for _, _, load_s in outcome.loads) / n,
        mean_s=sum(ordered) / n,
        p50_s=_quantile(ordered, 0.5),
        p95_s=_quantile(ordered, 0.95),
        p99_s=_quantile(ordered, 0.99),
        max_s=ordered[-1],
        slo_pct=100 * met / n,
        max_bypass_s=max(s - f for s, f in zip(outcome.started_s, free, strict=True)),
    )


def bounds(jobs: list[Job], *, runners: int, slots: int) -> Bounds:
    """Return what no policy that serves in order of arrival beats."""
    starts = fifo_starts(jobs, runners)
    latency = sorted(s + j.exec_s - j.t_s for s, j in zip(starts, jobs, strict=True))
    misses = belady_misses([j.hint for j in jobs], slots)
    return Bounds(1000 * misses / len(jobs), sum(latency) / len(latency), _quantile(latency, 0.99))


def fifo_starts(jobs: list[Job], runners: int) -> list[float]:
    """Return when each request would start first come first served, with free loads: the reference for bypass."""
    ends = [0.0] * runners
    starts = []
    for job in jobs:
        start = max(job.t_s, ends[0])
        heapq.heapreplace(ends, start + job.exec_s)
        starts.append(start)
    return starts


def belady_misses(hints: list[Hint], slots: int) -> int:
    """Return the misses of the optimal offline replacement (MIN) on one cache of *slots* models."""
    uses: dict[Hint, list[int]] = defaultdict(list)
    for i in range(len(hints) - 1, -1, -1):
        uses[hints[i]].append(i)
    cache: dict[Hint, int] = {}
    misses = 0
    for hint in hints:
        uses[hint].pop()
        following = uses[hint][-1] if uses[hint] else len(hints)
        if hint not in cache:
            misses += 1
            if len(cache) >= slots:
                del cache[max(cache, key=cache.__getitem__)]
        cache[hint] = following
    return misses


def _quantile(ordered: list[float], q: float) -> float:
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]
