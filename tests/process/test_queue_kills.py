"""
Queued jobs, and kill -9 of whatever serves them: every job that was acknowledged ends, once, and well.

The next victim falls once the fleet is ready again. How many jobs and kills there are is read from the environment:

    FALCTL_TEST_JOBS=500 FALCTL_TEST_KILLS=200 python -m pytest tests/process/test_queue_kills.py -k killed
"""

from __future__ import annotations

import os
import signal
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest

from falctl.core.retries import ATTEMPTS_MAX
from tests.process.apps.journal import JOURNAL
from tests.process.on_cpu import Falctl
from tests.wait import until

pytestmark = pytest.mark.process

JOBS = int(os.environ.get("FALCTL_TEST_JOBS", "60"))
KILLS = int(os.environ.get("FALCTL_TEST_KILLS", "12"))
WORK_S = 0.3
SEED = 4
VICTIMS = ("router", "runner0", "runner1", "supervisor")
WEIGHTS = (4, 2, 2, 2)
"""A router that dies often is restarted ever later, and given up in the end, unless its supervisor dies, too."""
CONFIG = "[runners]\nbackoff_min = 0.05\nbackoff_max = 0.05\nrestarts_max = 1000\n"


def submit(f: Falctl, path: str, body: dict[str, Any]) -> str:
    reply = f.post(f"/queue/me/app{path}", body)
    assert reply.status == 200, reply.body
    request: str = reply.json["request_id"]
    return request


def state(f: Falctl, request: str) -> dict[str, Any]:
    reply = f.get(f"/queue/me/app/requests/{request}/status")
    assert reply.status in (200, 202), reply.body
    found: dict[str, Any] = reply.json
    return found


def all_ready(f: Falctl) -> bool:
    return bool(f.get("/health").json["runners_ready"] == 2)


def kill(f: Falctl, victim: str) -> set[int]:
    """Kill *victim*, and wait until the whole fleet is ready again; return which runners died."""
    before = f.pids()
    if victim == "supervisor":
        f.kill()
        until(lambda: not f.family(), within_s=30.0, what="nothing is left of it")
        f.start_again()
    else:
        old = before[victim]
        os.kill(old, signal.SIGKILL)
        until(lambda: f.pids()[victim] not in (0, old), within_s=60.0, what=f"a new {victim}")
    until(lambda: all_ready(f), within_s=60.0, what=f"ready after the end of {victim}")
    return {before[name] for name in before if name.startswith("runner") and victim in (name, "supervisor")}


def overlaps(journal: Path, died: set[int]) -> list[str]:
    """Return the lines of the work that somebody began while another, who lived on, was still at it."""
    at_it, found = dict[str, str](), list[str]()
    for line in journal.read_text().splitlines():
        what, n, pid = line.split()
        if what == "end":
            at_it.pop(n, None)
            continue
        other = at_it.get(n)
        found += [line] if other is not None and int(other) not in died else []
        at_it[n] = pid
    return found


def attempts(f: Falctl) -> dict[str, int]:
    """Return how often each job was attempted, as the disk says when nobody writes any more."""
    with closing(sqlite3.connect(f.home.jobs / "jobs.db")) as database:
        return dict(database.execute("SELECT id, attempts FROM jobs WHERE ended_at IS NOT NULL"))


@pytest.mark.timeout(120 + 20 * KILLS + 5 * JOBS)
def test_every_acknowledged_job_ends_well_whoever_is_killed(tmp_path: Path) -> None:
    victims = Random(SEED).choices(VICTIMS, WEIGHTS, k=KILLS)
    journal, died, ended = tmp_path / "journal", set[int](), set[str]()
    app = "tests.process.apps.journal:Journal"
    with Falctl(app, config=CONFIG, args=("--runners", "2"), env={JOURNAL: str(journal)}) as f:
        requests = [submit(f, "/work", {"n": n, "seconds": WORK_S}) for n in range(JOBS)]
        for number, victim in enumerate(victims):
            died |= kill(f, victim)
            seen = {r for r in requests[number :: len(victims)] if state(f, r)["status"] == "COMPLETED"}
            assert all(state(f, request)["status"] == "COMPLETED" for request in ended), "an end is for good"
            ended = seen
        until(
            lambda: all(state(f, request)["status"] == "COMPLETED" for request in requests),
            within_s=60.0 + JOBS,
            what="all have ended",
            every_s=0.5,
        )
        results = [f.get(f"/queue/me/app/requests/{request}") for request in requests]
        f.stop()
        tries = attempts(f)
    assert set(tries) == set(requests), "none is lost, none is there twice"
    for n, (request, result) in enumerate(zip(requests, results, strict=True)):
        if tries[request] < ATTEMPTS_MAX:
            assert (result.status, result.json) == (200, {"n": n})
        else:
            assert result.status in (200, 503)
    print(f"victims: {dict(Counter(victims))}; jobs by attempts: {dict(Counter(tries.values()))}")
    assert overlaps(journal, died) == []


def test_a_full_queue_is_there_after_a_restart_in_its_order() -> None:
    with Falctl(config=CONFIG + "drain_timeout = 0\n", args=("--runners", "1")) as f:
        long = submit(f, "/sleep", {"seconds": 600})
        requests = [submit(f, "/sleep", {"seconds": 0}) for _ in range(10)]
        until(lambda: state(f, long)["status"] == "IN_PROGRESS", within_s=30.0, what="the first runs")
        f.kill()
        until(lambda: not f.family(), within_s=30.0, what="nothing is left of it")
        f.start_again()
        until(lambda: state(f, long)["status"] == "IN_PROGRESS", within_s=30.0, what="the first runs again")
        assert [state(f, request)["queue_position"] for request in requests] == list(range(10))
