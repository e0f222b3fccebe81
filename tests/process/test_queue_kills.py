"""Queued jobs, and kill -9 of whatever serves them: every job that was acknowledged ends, once, and well."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from tests.process.on_cpu import Falctl
from tests.wait import until

pytestmark = pytest.mark.process

JOBS = 60
TURNS = ("router", "runner0", "runner1", "supervisor", "router", "runner0", "supervisor", "router", "runner1")
"""Nine kills: fewer than a job has attempts."""
CONFIG = "[runners]\nbackoff_min = 0.1\nrestarts_max = 100\n"


def submit(f: Falctl, n: int) -> str:
    reply = f.post("/queue/me/echo/sleep", {"seconds": 0.3, "n": n})
    assert reply.status == 200, reply.body
    request: str = reply.json["request_id"]
    return request


def state(f: Falctl, request: str) -> dict[str, Any]:
    reply = f.get(f"/queue/me/echo/requests/{request}/status")
    assert reply.status in (200, 202), reply.body
    found: dict[str, Any] = reply.json
    return found


def all_ready(f: Falctl) -> bool:
    return bool(f.get("/health").json["runners_ready"] == 2)


def kill(f: Falctl, victim: str) -> None:
    """Kill *victim*, and wait until the whole fleet is ready again."""
    if victim == "supervisor":
        f.kill()
        until(lambda: not f.family(), within_s=10.0, what="nothing is left of it")
        f.start_again()
    else:
        old = f.pids()[victim]
        os.kill(old, signal.SIGKILL)
        until(lambda: f.pids()[victim] not in (0, old), within_s=30.0, what=f"a new {victim}")
    until(lambda: all_ready(f), within_s=60.0, what=f"ready after the end of {victim}")


def test_every_acknowledged_job_ends_well_whoever_is_killed() -> None:
    with Falctl(config=CONFIG, args=("--runners", "2")) as f:
        requests = [submit(f, n) for n in range(JOBS)]
        for victim in TURNS:
            kill(f, victim)
        until(
            lambda: all(state(f, request)["status"] == "COMPLETED" for request in requests),
            within_s=60.0,
            what="all have ended",
            every_s=0.3,
        )
        for request in requests:
            result = f.get(f"/queue/me/echo/requests/{request}")
            assert (result.status, result.json) == (200, {"slept_s": 0.3})


def test_a_full_queue_is_there_after_a_restart_in_its_order() -> None:
    with Falctl(config=CONFIG + "drain_timeout = 0\n", args=("--runners", "1")) as f:
        long = f.post("/queue/me/echo/sleep", {"seconds": 600}).json["request_id"]
        requests = [submit(f, n) for n in range(10)]
        until(lambda: state(f, long)["status"] == "IN_PROGRESS", within_s=30.0, what="the first runs")
        f.kill()
        until(lambda: not f.family(), within_s=10.0, what="nothing is left of it")
        f.start_again()
        until(lambda: state(f, long)["status"] == "IN_PROGRESS", within_s=30.0, what="the first runs again")
        assert [state(f, request)["queue_position"] for request in requests] == list(range(10))
