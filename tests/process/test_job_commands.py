"""`falctl jobs` and `falctl cancel`, typed by a person."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from rich.console import Console

from falctl.cli.jobs import job_table
from tests.process.harness import Falctl, Reply
from tests.wait import until

pytestmark = pytest.mark.process

LONG = """
import asyncio
from falctl import App, endpoint

class Long(App):
    @endpoint("/")
    async def long(self, body: dict[str, str]) -> None:
        await asyncio.sleep(3600)
"""


def listed(f: Falctl) -> list[dict[str, Any]]:
    told = f.run("jobs", "--json")
    assert told.returncode == 0, told.stderr
    jobs: list[dict[str, Any]] = json.loads(told.stdout)["jobs"]
    return jobs


def states(f: Falctl) -> list[str]:
    return [job["state"] for job in listed(f)]


def test_jobs_are_listed_and_cancelled_by_the_beginning_of_their_ids() -> None:
    with Falctl("long.py::Long", args=("--runners", "1"), start=False) as f:
        (f.cwd / "long.py").write_text(LONG)
        f.start()
        f.wait_ready()
        assert f.run("jobs").stdout == "nothing runs or waits, and no queued job has ended lately\n"
        long = {"model": "m"}
        first, second = (f.post("/queue/me/app", long).json["request_id"] for _ in range(2))
        replies: list[Reply] = []
        asking = threading.Thread(target=lambda: replies.append(f.post("/", long, timeout_s=60.0)))
        asking.start()
        until(
            lambda: states(f) == ["running", "waiting", "waiting"], within_s=60.0, what="one runs, two wait"
        )
        shown = f.run("jobs").stdout.splitlines()
        assert shown[0].split() == ["REQUEST", "STATE", "WHEN", "WHERE", "APP", "MODEL"]
        assert [line.split()[0] for line in shown[1:3]] == [first[:13], second[:13]]
        assert f.run("jobs", "-n", "0").stdout.splitlines()[-1] == "2 more wait"
        direct = next(job["request"] for job in listed(f) if job["kind"] == "direct")
        for request in (second, direct, first):
            told = f.run("cancel", request[:13])
            assert (told.returncode, told.stdout) == (0, f"request {request} is being cancelled\n"), (
                told.stderr
            )
        asking.join(60.0)
        assert [reply.status for reply in replies] == [499]
        until(lambda: states(f) == ["cancelled", "cancelled"], within_s=60.0, what="all is over")
        again = f.run("cancel", first)
        assert (again.returncode, again.stderr) == (1, f"falctl: request {first} has ended already\n")
        unknown = f.run("cancel", "nobody-at-all")
        assert (unknown.returncode, unknown.stdout) == (1, "")
        assert "`falctl jobs` lists them" in unknown.stderr


@pytest.mark.parametrize("width", [80, 120])
def test_a_line_has_room_for_the_app_and_cuts_the_model(width: int) -> None:
    hint = "stabilityai/stable-diffusion-xl-base-1.0" * 3
    row: dict[str, Any] = {
        "request": "2de1ad03-6351-40f8",
        "kind": "queued",
        "app": "somebody-with-a-name/draw",
        "hint": hint,
    }
    row |= {"state": "completed", "age_s": 200.0, "runner": None, "status": 200, "position": None}
    console = Console(width=width)
    with console.capture() as printed:
        console.print(
            job_table(
                [row | {"ended_ago_s": 144.0}, row | {"kind": "direct", "ended_ago_s": 1.0}], width=width
            )
        )
    head, queued, direct = (line.rstrip() for line in printed.get().splitlines())
    assert head.split()[-2:] == ["APP", "MODEL"]
    assert queued.split()[-2] == "draw"
    assert "draw (direct)" in direct
    assert len(queued) == len(direct) == width
    assert queued.endswith("…")
