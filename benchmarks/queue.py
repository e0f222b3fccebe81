"""
What durability costs: submissions per second and time to start, against a direct run and bare fdatasync of the same disk.

    python -m benchmarks.queue [--folder DIR] [--rounds 5] [--seconds 2] [--samples 500] [--waiting 10000] [--json FILE]

Submitters hand in a job of 1 KiB, wait until it is durable, and hand in the next. The baseline appends 4 KiB to a file
and calls fdatasync, as fast as that goes. All take turns, round by round, since a disk is not equally fast all the
time; each round of the store begins empty. One transaction of the store is one fdatasync of its log; what checkpoints
add (two for every 16 MiB of log) is not in the column.

Then whole falctls with one CPU runner each and one client: from sending a request to its entry into the app, directly
and through the idle queue; and submissions and questions for a status where so many jobs wait, against a queue in which
none does. Contenders take turns, sample by sample, the bare disk among them.
"""

from __future__ import annotations

import asyncio
import math
import os
import sqlite3
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks._queue_live import falctl
from benchmarks._report import Table, arguments, publish
from falctl.core.types import RequestId
from falctl.router.jobs.records import NewJob, StoreLimits
from falctl.router.jobs.store import JobStore

SUBMITTERS: Final = (1, 64)
PAGE: Final = b"\xa5" * 4096
BODY: Final = b"\xa5" * 1024
LIMITS: Final = StoreLimits(keep_s=3600.0, max_bytes=1 << 40)
METRICS: Final = ("submits/s", "p50 ms", "p99 ms", "commits per fdatasync#", "submits#")
BASELINE: Final = "bare fdatasync"
GOAL: Final = "Goal: at 64 submitters at least 5 commits per fdatasync."
TIMES: Final = ("p50 ms", "p99 ms", "samples#")


@dataclass(slots=True)
class Tally:
    """What one contender did in all its rounds."""

    spent_s: list[float] = field(default_factory=list)
    """Of each submission."""
    wall_s: float = 0.0
    syncs: int = 0

    def figures(self) -> dict[str, float]:
        """Return them by the names in `METRICS`."""
        n = len(self.spent_s)
        p50, p99 = quantiles_ms(self.spent_s)
        return dict(zip(METRICS, (n / self.wall_s, p50, p99, n / self.syncs, float(n)), strict=True))


def quantiles_ms(spent_s: list[float]) -> tuple[float, float]:
    """Return median and 99th percentile in milliseconds."""
    ordered, n = sorted(spent_s), len(spent_s)
    p50, p99 = (1000 * ordered[min(n - 1, math.floor(q * n))] for q in (0.5, 0.99))
    return p50, p99


def sync_for(tally: Tally, folder: Path, seconds: float) -> None:
    """Append and sync for *seconds*."""
    fd = os.open(folder / "bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    began = last = time.perf_counter()
    while last == began or last - began < seconds:
        os.write(fd, PAGE)
        os.fdatasync(fd)
        now = time.perf_counter()
        tally.spent_s.append(now - last)
        tally.syncs += 1
        last = now
    tally.wall_s += last - began
    os.close(fd)


async def submit_for(tally: Tally, folder: Path, *, submitters: int, seconds: float) -> None:
    """Let *submitters* submit to a new store for *seconds*."""
    store = JobStore(folder, LIMITS)
    await store.submit(NewJob(RequestId("first"), b"", BODY))
    before, began = store.writer.transactions, time.perf_counter()

    async def submitter(name: int) -> None:
        n = 0
        while (at := time.perf_counter()) - began < seconds:
            await store.submit(NewJob(RequestId(f"{name}-{n}"), b"{}", BODY))
            tally.spent_s.append(time.perf_counter() - at)
            n += 1

    await asyncio.gather(*(submitter(name) for name in range(submitters)))
    tally.wall_s += time.perf_counter() - began
    tally.syncs += store.writer.transactions - before
    store.close()


def measured(parent: Path | None, *, rounds: int, seconds: float) -> Table:
    """Return the figures of the disk that *parent* is on; None: of the folder for temporary files."""
    names = {f"{n} submitter{'s' if n > 1 else ''}": n for n in SUBMITTERS}
    tallies = {name: Tally() for name in (BASELINE, *names)}

    for number in range(rounds):
        sys.stderr.write(f"round {number + 1} of {rounds}\n")
        for name, tally in tallies.items():
            with tempfile.TemporaryDirectory(dir=parent) as folder:
                if name == BASELINE:
                    sync_for(tally, Path(folder), seconds)
                else:
                    work = submit_for(tally, Path(folder), submitters=names[name], seconds=seconds)
                    asyncio.run(work)
    rows = {name: tally.figures() for name, tally in tallies.items()}
    return Table("Submissions that are durable when they are acknowledged", METRICS, rows, BASELINE, (GOAL,))


def starts(parent: Path | None, *, samples: int) -> Table:
    """Return how long requests take to enter the app of an idle falctl."""
    spent: dict[str, list[float]] = {name: [] for name in ("direct run", "queue", BASELINE)}
    tally = Tally(spent_s=spent[BASELINE])
    with tempfile.TemporaryDirectory(dir=parent) as folder, falctl(Path(folder) / "a") as client:
        for _ in range(samples):
            spent["direct run"].append(client.started_s(queued=False))
            spent["queue"].append(client.started_s(queued=True))
            sync_for(tally, Path(folder), 0.0)
    rows = _rows(spent)
    added, allowed = rows["queue"]["p50 ms"] - rows["direct run"]["p50 ms"], 2 * rows[BASELINE]["p50 ms"] + 3
    goal = (
        f"Goal: the queue adds at most 2 fdatasyncs and 3 ms at p50. It adds {added:.1f} of {allowed:.1f} ms."
    )
    return Table("From sending a request to its entry into the app, idle", TIMES, rows, "direct run", (goal,))


def crowded(parent: Path | None, *, samples: int, waiting: int) -> Table:
    """Return what a client's calls take where *waiting* jobs wait, and where none does."""
    names = {False: "nobody waits", True: f"{waiting:,} wait"}
    spent = {f"{what}, {name}": list[float]() for what in ("submit", "status") for name in names.values()}
    with (
        tempfile.TemporaryDirectory(dir=parent) as folder,
        falctl(Path(folder) / "a") as empty,
        falctl(Path(folder) / "b") as full,
    ):
        for client in (empty, full):
            client.hold()
        full.fill(waiting)
        for _ in range(samples):
            for client, name in ((empty, names[False]), (full, names[True])):
                for what, took_s in zip(("submit", "status"), client.times(), strict=True):
                    spent[f"{what}, {name}"].append(took_s)
    rows = _rows(spent)
    goals = [
        f"{what} {rows[f'{what}, {names[True]}']['p99 ms'] / rows[f'{what}, {names[False]}']['p99 ms']:.2f}x"
        for what in ("submit", "status")
    ]
    goal = f"Goal: both at p99 within 2x of an empty queue. They are at {', '.join(goals)}."
    return Table("Calls beside those who wait", TIMES, rows, f"submit, {names[False]}", (goal,))


def _rows(spent: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    return {
        name: dict(zip(TIMES, (*quantiles_ms(times), float(len(times))), strict=True))
        for name, times in spent.items()
    }


def main() -> int:
    """Measure and publish; three minutes."""
    parser = arguments((__doc__ or "").splitlines()[1])
    parser.add_argument("--folder", type=Path, help="on the disk to be measured")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each contender in each round")
    parser.add_argument("--samples", type=int, default=500, help="of each call to a whole falctl")
    parser.add_argument("--waiting", type=int, default=10_000, help="jobs that wait in the crowded queue")
    options = parser.parse_args()
    tables = [
        measured(options.folder, rounds=options.rounds, seconds=options.seconds),
        starts(options.folder, samples=options.samples),
        crowded(options.folder, samples=options.samples, waiting=options.waiting),
    ]
    publish("The durable queue", tables, json_path=options.json, facts={"sqlite": sqlite3.sqlite_version})
    return 0


if __name__ == "__main__":
    sys.exit(main())
