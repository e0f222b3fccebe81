"""Traces for tests: five requests whose figures fit on paper, and drawn ones."""

from __future__ import annotations

from random import Random

from hypothesis import strategies as st

from falctl.core.types import Hint
from falctl.replay.trace import Job

FIVE = """t_s,hint,exec_s,load_s,size_bytes,client
0,a,2,4,10,x
1,a,2,4,10,y
2,b,1,3,20,x
30,b,1,3,20,
31,a,2,4,10,y
"""


def job(t_s: float, hint: str, exec_s: float = 1.0, load_s: float = 4.0, size_bytes: int = 10) -> Job:
    return Job(t_s, Hint(hint), exec_s, load_s, size_bytes, "c")


def five() -> list[Job]:
    return [
        job(0, "a", 2, 4),
        job(1, "a", 2, 4),
        job(2, "b", 1, 3, 20),
        job(30, "b", 1, 3, 20),
        job(31, "a", 2, 4),
    ]


def drawn(seed: int, n: int = 400, *, models: int = 12, gap_s: float = 2.0) -> list[Job]:
    """Return a skewed trace: model i is wanted 1 / (i + 1) as often as the first, in bursts of up to three."""
    rng = Random(seed)
    exec_s = [round(rng.uniform(1, 5), 3) for _ in range(models)]
    load_s = [round(rng.uniform(4, 20), 3) for _ in range(models)]
    weights = [1 / (i + 1) for i in range(models)]
    jobs: list[Job] = []
    t_s = 0.0
    while len(jobs) < n:
        model = rng.choices(range(models), weights)[0]
        for _ in range(rng.randint(1, 3)):
            t_s = round(t_s + rng.expovariate(1 / gap_s), 6)
            size = 10 + model
            jobs.append(Job(t_s, Hint(f"m{model}"), exec_s[model], load_s[model], size, f"c{model % 5}"))
    return jobs[:n]


def small_traces(*, hints: str = "abcd") -> st.SearchStrategy[list[Job]]:
    """Return traces of up to 25 requests, many at the same instant, with free and with long loads."""
    seconds = st.sampled_from([0.0, 0.25, 1.0, 3.0, 10.0])
    sizes = {hint: 10 * (i + 1) for i, hint in enumerate(hints)}
    one = st.builds(
        lambda t_s, hint, exec_s, load_s: job(t_s, hint, exec_s, load_s, sizes.get(hint, 0)),
        st.integers(0, 30).map(float),
        st.sampled_from(list(hints)),
        seconds,
        seconds,
    )
    return st.lists(one, min_size=1, max_size=25).map(lambda jobs: sorted(jobs, key=lambda j: j.t_s))
