"""
What durability costs: submissions to the job store per second, against bare fdatasync of the same disk.

    python -m benchmarks.queue [--folder DIR] [--rounds 5] [--seconds 2] [--json FILE]

Submitters hand in a job of 1 KiB, wait until it is durable, and hand in the next. The baseline appends 4 KiB to a file
and calls fdatasync, as fast as that goes. All take turns, round by round, since a disk is not equally fast all the
time; each round of the store begins empty. One transaction of the store is one fdatasync of its log; what checkpoints
add (two for every 16 MiB of log) is not in the column.
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


@dataclass(slots=True)
class Tally:
    """What one contender did in all its rounds."""

    spent_s: list[float] = field(default_factory=list)
    """Of each submission."""
    wall_s: float = 0.0
    syncs: int = 0

    def figures(self) -> dict[str, float]:
        """Return them by the names in `METRICS`."""
        ordered, n = sorted(self.spent_s), len(self.spent_s)
        p50, p99 = (1000 * ordered[min(n - 1, math.floor(q * n))] for q in (0.5, 0.99))
        return dict(zip(METRICS, (n / self.wall_s, p50, p99, n / self.syncs, float(n)), strict=True))


def sync_for(tally: Tally, folder: Path, seconds: float) -> None:
    """Append and sync for *seconds*."""
    fd = os.open(folder / "bare", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    began = last = time.perf_counter()
    while last - began < seconds:
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


def main() -> int:
    """Measure and publish; half a minute."""
    parser = arguments((__doc__ or "").splitlines()[1])
    parser.add_argument("--folder", type=Path, help="on the disk to be measured")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each contender in each round")
    options = parser.parse_args()
    table = measured(options.folder, rounds=options.rounds, seconds=options.seconds)
    publish("The durable queue", [table], json_path=options.json, facts={"sqlite": sqlite3.sqlite_version})
    return 0


if __name__ == "__main__":
    sys.exit(main())
