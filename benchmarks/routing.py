"""
Real runs against the virtual clock: `auto` and fal's rule over HTTP, and the same requests replayed.

    python -m benchmarks.routing --traces DIR [--policies auto,fal] [--quick] [--json FILE]

For each policy `falctl up` starts four CPU runners of runners/simulated.py with room for three models each. Every
request is sent at its instant in the trace, whatever has been answered by then, and its latency counts from that
instant; how late the client itself was is told. Then `falctl.replay` plays the same rows with the same settings.
A real fleet never has the exact instants of a trace, and one trace alone moves by some percent when they do, so the
replayed figures are means over copies whose arrivals are moved by up to 10 ms. About nine minutes.

The traces are read from ``--traces DIR`` or ``$FALCTL_TRACES``; they are not part of this repository.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any, Final

import aiohttp

from benchmarks._report import Table, arguments, packages, publish
from falctl.clock import monotonic_s
from falctl.core.types import Hint
from falctl.errors import ConfigError, StartError
from falctl.policy_load import find_policy
from falctl.replay.report import figures
from falctl.replay.trace import Job, Missing, read_trace
from falctl.replay.world import Outcome, Setting, World
from falctl.wire import H_HINT

SETTING: Final = Setting(runners=4, models_max=3)

ZIPF_LOAD_S: Final = 0.4
ZIPF_EXEC_S: Final = 0.04
GENTD_FIRST: Final = 3000
"""Row of GenTD26 with which the stretch begins."""
GENTD_FASTER: Final = 20.0
"""Its arrivals, executions and loads are divided by this: the shortest execution is then 5 ms, the mean 0.22 s."""
GENTD_S: Final = 120.0
QUICK_S: Final = 4.0

COPIES: Final = 9
JITTER_S: Final = 0.01
WITHIN: Final = 0.2
"""The goal: real figures differ from replayed ones by less than this share."""

ANSWER_S: Final = 600.0
IDLE_S: Final = 60.0
BEGIN_S: Final = 0.5
"""How long after the decision to begin the first request is sent."""

METRICS: Final = ("loads/1k", "mean s", "p50 s#", "p95 s", "p99 s#")
COMPARED: Final = ("loads/1k", "mean s", "p95 s")

Row = dict[str, float]


class BenchmarkError(Exception):
    """The fleet did not do what it should; what was measured means nothing."""


@dataclass(frozen=True, slots=True)
class Case:
    """Requests, and how they are called."""

    title: str
    jobs: list[Job]


@dataclass(frozen=True, slots=True)
class Answered:
    """One request over HTTP, in seconds."""

    latency_s: float
    """From its instant in the trace to the last byte of its answer."""
    late_s: float
    """How late the client sent it."""


def main() -> int:
    """Play everything, for real and replayed."""
    parser = arguments((__doc__ or "").splitlines()[1])
    parser.add_argument("--traces", type=Path, metavar="DIR", default=os.environ.get("FALCTL_TRACES"))
    parser.add_argument("--policies", default="auto,fal", metavar="P[,P...]", help="the last is the baseline")
    parser.add_argument("--quick", action="store_true", help=f"only the first {QUICK_S:g} s of each trace")
    options = parser.parse_args()
    if options.traces is None:
        parser.error("where are the traces? give --traces DIR or set FALCTL_TRACES")
    try:
        cases = _cases(Path(options.traces), longest_s=QUICK_S if options.quick else float("inf"))
        tables = [table for case in cases for table in _tables(case, options.policies.split(","))]
    except (ConfigError, StartError) as error:
        sys.stderr.write(f"benchmarks.routing: {error}\n")
        return error.exit_code
    except BenchmarkError as error:
        sys.stderr.write(f"benchmarks.routing: {error}\n")
        return 1
    publish("Routing", tables, json_path=options.json, facts=packages("uvicorn", "aiohttp"))
    return 0


# --- what is played ------------------------------------------------------------------------------


def _cases(folder: Path, *, longest_s: float) -> Iterator[Case]:
    zipf = read_trace(folder / "zipf30_20rps.jsonl", missing=Missing(exec_s=ZIPF_EXEC_S, load_s=ZIPF_LOAD_S))
    jobs = _stretch(zipf, first=0, faster=1.0, longest_s=longest_s)
    yield Case(f"zipf30, 20 requests/s: load {ZIPF_LOAD_S:g} s, execution {ZIPF_EXEC_S:g} s", jobs)
    gentd = read_trace(folder / "gentd26_public_n4_u35.csv.gz")
    first = min(GENTD_FIRST, len(gentd) // 2)
    jobs = _stretch(gentd, first=first, faster=GENTD_FASTER, longest_s=min(GENTD_S, longest_s))
    yield Case(f"GenTD26 n4_u35 from request {first} on, {GENTD_FASTER:g} times as fast", jobs)


def _stretch(jobs: Sequence[Job], *, first: int, faster: float, longest_s: float) -> list[Job]:
    """
    Return the rows from *first* on, in seconds from its arrival, as a client can play them.

    A model's name tells the simulated runner how long to load it. No request over HTTP declares its size, and one
    that names no client comes from this machine's address.
    """
    began_at = jobs[first].t_s
    return [
        Job(
            t_s=(job.t_s - began_at) / faster,
            hint=Hint(f"{job.hint}@{job.load_s / faster:.4f}"),
            exec_s=job.exec_s / faster,
            load_s=float(f"{job.load_s / faster:.4f}"),
            size_bytes=0,
            client=job.client or "127.0.0.1",
        )
        for job in jobs[first:]
        if (job.t_s - began_at) / faster < longest_s
    ]


def _tables(case: Case, policies: Sequence[str]) -> Iterator[Table]:
    real, replayed = {}, {}
    for policy in policies:
        sys.stderr.write(f"{case.title}: {len(case.jobs)} requests, {policy}\n")
        found = [_replayed(jobs, policy) for jobs in _copies(case.jobs)]
        replayed[policy] = {metric: fmean(row[metric] for row in found) for metric in METRICS}
        for metric in COMPARED:
            values = [row[metric] for row in found]
            replayed[policy] |= {f"least {metric}#": min(values), f"most {metric}#": max(values)}
        real[policy] = _real(case.jobs, policy)
    late = ("client late p50 ms#", "client late p99 ms#", "client late max ms#")
    title = (
        f"{case.title}, {len(case.jobs)} requests, {SETTING.runners} runners x {SETTING.models_max} models"
    )
    yield Table(f"{title}: over HTTP", (*METRICS, *late), real, baseline=policies[-1])
    ranges = tuple(f"{which} {metric}#" for metric in COMPARED for which in ("least", "most"))
    yield Table(f"{title}: replayed", (*METRICS, *ranges), replayed, baseline=policies[-1])
    quotients = {p: {f"{m}#": real[p][m] / replayed[p][m] for m in COMPARED if replayed[p][m]} for p in real}
    note = f"Goal: from {1 - WITHIN:g} to {1 + WITHIN:g}."
    yield Table(
        f"{title}: over HTTP / replayed",
        tuple(f"{metric}#" for metric in COMPARED),
        quotients,
        baseline=policies[-1],
        notes=(note,),
    )


# --- the virtual clock ---------------------------------------------------------------------------


def _copies(jobs: list[Job]) -> Iterator[list[Job]]:
    for seed in range(COPIES):
        rng = Random(seed)
        moved = [replace(job, t_s=job.t_s + rng.uniform(-JITTER_S, JITTER_S)) for job in jobs]
        yield sorted(moved, key=lambda job: job.t_s)


def _replayed(jobs: list[Job], policy: str) -> Row:
    return _row(jobs, World(jobs, find_policy(policy, cwd=Path.cwd()), SETTING).run())


def _row(jobs: list[Job], outcome: Outcome) -> Row:
    found = figures(jobs, outcome, runners=SETTING.runners)
    values = (found.loads_per_1k, found.mean_s, found.p50_s, found.p95_s, found.p99_s)
    return dict(zip(METRICS, values, strict=True))


# --- real runs -----------------------------------------------------------------------------------


def _real(jobs: list[Job], policy: str) -> Row:
    with tempfile.TemporaryDirectory(prefix="fb") as folder, _falctl(Path(folder), policy) as fleet:
        answers = asyncio.run(_play(fleet.url(), jobs))
        loads = fleet.loads_when_idle()
    latency_s = [answer.latency_s for answer in answers]
    # What `figures` says of bypass and of load seconds is not asked for, so only the number of loads counts.
    outcome = Outcome(latency_s, latency_s, [(0.0, Hint(""), 0.0)] * loads)
    late_ms = sorted(1000 * answer.late_s for answer in answers)
    n = len(late_ms)
    return _row(jobs, outcome) | {
        "client late p50 ms#": late_ms[n // 2],
        "client late p99 ms#": late_ms[min(n - 1, int(0.99 * n))],
        "client late max ms#": late_ms[-1],
    }


async def _play(url: str, jobs: list[Job]) -> list[Answered]:
    """Send every request at its instant, and return how that went, in order."""
    timeout = aiohttp.ClientTimeout(total=ANSWER_S)
    connector = aiohttp.TCPConnector(limit=0)  # a client that waits for a connection would be late
    async with aiohttp.ClientSession(url, timeout=timeout, connector=connector) as session:
        async with session.get("/health") as health:
            await health.read()
        begins_at = monotonic_s() + BEGIN_S
        try:
            async with asyncio.TaskGroup() as group:
                tasks = []
                for job in jobs:
                    await asyncio.sleep(begins_at + job.t_s - monotonic_s())
                    tasks.append(group.create_task(_ask(session, job, begins_at + job.t_s)))
        except* (aiohttp.ClientError, TimeoutError, BenchmarkError) as errors:
            first = errors.exceptions[0]
            msg = f"{len(errors.exceptions)} requests failed; the first: {type(first).__name__}: {first}"
            raise BenchmarkError(msg) from first
        return [task.result() for task in tasks]


async def _ask(session: aiohttp.ClientSession, job: Job, due_at: float) -> Answered:
    late_s = monotonic_s() - due_at
    headers = {H_HINT: job.hint, "Authorization": f"Key {job.client}"}
    body = {"model": job.hint, "exec_s": job.exec_s}
    async with session.post("/", json=body, headers=headers) as answer:
        text = await answer.text()
        if answer.status != 200:
            msg = f"{answer.status} {text[:200]}"
            raise BenchmarkError(msg)
    return Answered(monotonic_s() - due_at, late_s)


@dataclass(frozen=True, slots=True)
class Running:
    """A detached falctl of ours."""

    command: tuple[str, ...]
    environ: dict[str, str]

    def run(self, *arguments: str) -> str:
        """Run a `falctl` command to its end and return what it printed."""
        done = subprocess.run(
            [*self.command, *arguments], env=self.environ, capture_output=True, text=True, check=False
        )
        if done.returncode:
            msg = f"falctl {arguments[0]} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            raise BenchmarkError(msg)
        return done.stdout

    def status(self) -> dict[str, Any]:
        """Return what `falctl status --json` prints."""
        found: dict[str, Any] = json.loads(self.run("status", "--json"))
        return found

    def url(self) -> str:
        """Return where it listens."""
        return str(self.status()["fleet"]["url"])

    def loads_when_idle(self) -> int:
        """Return how many models all runners have loaded, once no load is under way."""
        deadline_at = monotonic_s() + IDLE_S
        while monotonic_s() < deadline_at:
            runners = self.status()["runners"]
            if not any(model["state"] == "loading" for runner in runners for model in runner["models"]):
                return sum(runner["loads"] for runner in runners)
        msg = f"a load has not ended within {IDLE_S:g} s after the last answer"
        raise BenchmarkError(msg)


@contextmanager
def _falctl(home: Path, policy: str) -> Iterator[Running]:
    (home / "c.toml").write_text(
        f'[routing]\npolicy = "{policy}"\n[runners]\ngpus = "none"\ncpu_count = {SETTING.runners}\n'
        f"[cache]\nmax_models = {SETTING.models_max}\n[queue]\nmax = 100000\nmax_per_client = 0\n[log]\nlevel = 'warning'\n"
    )
    environ = {k: v for k, v in os.environ.items() if not k.startswith("FALCTL_")}
    environ |= {"FALCTL_HOME": str(home / "f"), "OMP_NUM_THREADS": "1"}
    running = Running((sys.executable, "-P", "-m", "falctl"), environ)
    running.run("up", "-d", "-c", str(home / "c.toml"), "--port", "0", "runners.simulated:SimulatedModels")
    try:
        yield running
    finally:
        running.run("down")


def _allow_connections() -> None:
    """Raise the limit of open files: each request that waits has a connection of its own."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    _allow_connections()
    sys.exit(main())
