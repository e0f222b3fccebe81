"""What is said of a replay: loads, latencies, service levels, and the bounds that nobody can beat."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from falctl.core.types import Hint
from falctl.replay.trace import Job
from falctl.replay.world import Outcome, Setting, sizes_of


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
    """The longest that an execution began after its turn, first come first served with free loads; so it includes
    every wait for a load, also a request's own."""
    ram_loads_per_1k: float = 0.0
    """Those of the loads that came from host memory."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """
    What no policy that serves in order of arrival beats; the latencies are what free loads would give.

    ``min_loads_per_1k``: of the optimal offline replacement on one cache as large as all runners together; Belady's
    MIN where runners count models; where they count bytes, no polynomial algorithm is known, and it is PFOO-L.
    """

    min_loads_per_1k: float
    zero_load_mean_s: float
    zero_load_p50_s: float
    zero_load_p95_s: float
    zero_load_p99_s: float
    zero_load_max_s: float
    zero_load_slo_pct: float


def figures(jobs: Sequence[Job], outcome: Outcome, *, runners: int) -> Figures:
    """Return the figures of a replay."""
    n = len(jobs)
    turns = fifo_starts(jobs, runners)
    mean, p50, p95, p99, most, slo = _latencies(jobs, outcome.latency_s)
    return Figures(
        requests=n,
        loads_per_1k=1000 * len(outcome.loads) / n,
        load_s_per_request=sum(load_s for _, _, load_s in outcome.loads) / n,
        mean_s=mean,
        p50_s=p50,
        p95_s=p95,
        p99_s=p99,
        max_s=most,
        slo_pct=slo,
        max_bypass_s=max(s - turn for s, turn in zip(outcome.started_s, turns, strict=True)),
        ram_loads_per_1k=1000 * outcome.ram_loads / n,
    )


def bounds(jobs: Sequence[Job], setting: Setting) -> Bounds:
    """Return what no policy that serves in order of arrival beats on the fleet of *setting*."""
    starts = fifo_starts(jobs, setting.runners)
    latency_s = [start + job.exec_s - job.t_s for start, job in zip(starts, jobs, strict=True)]
    hints = [job.hint for job in jobs if job.hint]
    if setting.vram(0) is not None:
        vram_bytes = sum(setting.vram(runner) or 0 for runner in range(setting.runners))
        misses = pfoo_misses(hints, sizes_of(jobs), vram_bytes)
    elif setting.models_max is not None:
        misses = belady_misses(hints, setting.runners * setting.models_max)
    else:
        misses = len(set(hints))
    return Bounds(1000 * misses / len(jobs), *_latencies(jobs, latency_s))


def fifo_starts(jobs: Sequence[Job], runners: int) -> list[float]:
    """Return when each request would start first come first served, with free loads: the reference for bypass."""
    ends = [-math.inf] * runners
    starts = []
    for job in jobs:
        start = max(job.t_s, ends[0])
        heapq.heapreplace(ends, start + job.exec_s)
        starts.append(start)
    return starts


def belady_misses(hints: Sequence[Hint], slots: int) -> int:
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


def pfoo_misses(hints: Sequence[Hint], sizes: Mapping[Hint, int], budget_bytes: int) -> int:
    """
    Return a lower bound of the misses on one cache of *budget_bytes*.

    PFOO-L (Berger, Beckmann, Harchol-Balter 2018): keeping a model from one use to its next is a hit and costs its
    size times that distance; of all such intervals the cheapest are kept until the budget times the length of the
    trace is spent, whether or not they fit side by side.
    """
    last: dict[Hint, int] = {}
    costs = []
    for i, hint in enumerate(hints):
        if hint in last:
            costs.append((i - last[hint]) * sizes[hint])
        last[hint] = i
    left = budget_bytes * len(hints)
    hits = 0
    for cost in sorted(costs):
        left -= cost
        if left < 0:
            break
        hits += 1
    return len(hints) - hits


def _latencies(
    jobs: Sequence[Job], latency_s: Sequence[float]
) -> tuple[float, float, float, float, float, float]:
    """Return mean, p50, p95, p99, max and the share of *jobs* in percent whose service level was met."""
    ordered = sorted(latency_s)
    n = len(ordered)
    met = sum(latency <= 3 * job.exec_s + 5 for latency, job in zip(latency_s, jobs, strict=True))
    p50, p95, p99 = (ordered[min(n - 1, int(q * n))] for q in (0.5, 0.95, 0.99))
    return sum(ordered) / n, p50, p95, p99, ordered[-1], 100 * met / n
