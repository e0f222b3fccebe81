"""A generator of synthetic workloads: fixed before anything was tuned on it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

from falctl.core.types import Hint
from falctl.replay.trace import Job

GAP_IN_SESSION = 2.0
"""Mean time between two requests of a session, in mean executions."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a seed stands for."""

    skew: float
    models: int
    runners: int
    busy: float
    load_per_exec: float
    session: int
    drift: bool
    spread: float


def shape_of(rng: Random) -> Shape:
    """Draw a workload: 2 to 8 runners, 5 to 100 models, 10 to 60 % busy, loads 0.1 to 50 executions long."""
    return Shape(
        skew=rng.uniform(0.6, 1.5),
        models=round(math.exp(rng.uniform(math.log(5), math.log(100)))),
        runners=rng.choice((2, 3, 4, 6, 8)),
        busy=rng.uniform(0.1, 0.6),
        load_per_exec=math.exp(rng.uniform(math.log(0.1), math.log(50))),
        session=rng.choice((1, 1, 3, 10)),
        drift=bool(rng.choice((0, 0, 1))),
        spread=rng.choice((0.0, 0.2, 0.5)),
    )


def workload(seed: int, requests: int = 4000) -> tuple[list[Job], Shape]:
    """Return the jobs of *seed* by time, and its shape."""
    rng = Random(seed)
    shape = shape_of(rng)
    execs = [3 * math.exp(rng.gauss(0, 0.6)) for _ in range(shape.models)]
    loads = [e * shape.load_per_exec * math.exp(rng.gauss(0, 0.4)) for e in execs]
    weights = [1 / (rank + 1) ** shape.skew for rank in range(shape.models)]
    order = list(range(shape.models))
    rng.shuffle(order)
    mean_exec = sum(w * execs[m] for w, m in zip(weights, order, strict=True)) / sum(weights)
    rate = shape.busy * shape.runners / mean_exec
    swap_every = max(1, requests // shape.session // 4)
    jobs: list[Job] = []
    at, client = 0.0, 0
    while len(jobs) < requests * 1.02:
        at += rng.expovariate(rate / shape.session)
        client += 1
        if shape.drift and client % swap_every == 0:
            i, j = rng.randrange(shape.models), rng.randrange(min(5, shape.models))
            order[i], order[j] = order[j], order[i]
        model = order[rng.choices(range(shape.models), weights)[0]]
        length = 1 if shape.session == 1 else 1 + int(rng.expovariate(1 / (shape.session - 1)))
        when = at
        for _ in range(length):
            exec_s = execs[model] * math.exp(rng.gauss(0, shape.spread) - shape.spread**2 / 2)
            jobs.append(Job(when, Hint(f"m{model:03}"), exec_s, loads[model], 10**9, f"c{client}"))
            when += rng.expovariate(1 / (GAP_IN_SESSION * mean_exec))
    jobs.sort(key=lambda job: (job.t_s, job.hint))
    return jobs[:requests], shape
