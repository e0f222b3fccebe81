"""Logs by request, whoever is killed meanwhile."""

from __future__ import annotations

import http.client
import os
import signal
import threading
from pathlib import Path

import pytest

from tests.process.harness import Falctl
from tests.wait import until

pytestmark = pytest.mark.process

STEP_S = 60.0

PATIENT = """
from pathlib import Path
from threading import Event
from falctl import App, endpoint

class Patient(App):
    @endpoint("/")
    def wait(self, body: dict[str, str]) -> str:
        print("before")
        while not Path(body["go"]).exists():
            Event().wait(0.01)
        print("after")
        return "done"
"""


def patient() -> Falctl:
    f = Falctl("patient.py::Patient", args=("--runners", "1"), start=False)
    (f.cwd / "patient.py").write_text(PATIENT)
    return f


def kill_router(f: Falctl) -> None:
    former = f.pids()["router"]
    os.kill(former, signal.SIGKILL)
    until(
        lambda: f.pids()["router"] not in (0, former) and f.get("/health").status == 200,
        within_s=STEP_S,
        what="another router",
    )


def told(f: Falctl, request: str) -> list[str]:
    done = f.run("logs", "--request", request)
    return [line.split(maxsplit=2)[2] for line in done.stdout.splitlines()]


def test_a_direct_request_keeps_its_lines_over_the_death_of_the_router(tmp_path: Path) -> None:
    go = tmp_path / "go"
    with patient() as f:
        f.start()
        f.wait_ready()
        errors: list[Exception] = []

        def ask() -> None:
            try:
                f.post("/", {"go": str(go)}, timeout_s=STEP_S)
            except (OSError, http.client.HTTPException) as error:
                errors.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        executing = until(
            lambda: row.executing if (row := f.board().runner(0)) else (), within_s=STEP_S, what="it runs"
        )
        request = executing[0].request
        until(lambda: told(f, request) == ["before"], within_s=STEP_S, what="the first line")
        kill_router(f)
        asking.join(STEP_S)
        assert errors, "its client hears of the router's death"
        until(lambda: told(f, request) == ["before"], within_s=STEP_S, what="the first line, told again")
        go.touch()
        until(lambda: told(f, request) == ["before", "after"], within_s=STEP_S, what="the rest")


def test_a_job_keeps_the_lines_of_every_attempt_over_the_death_of_the_router(tmp_path: Path) -> None:
    go = tmp_path / "go"
    with patient() as f:
        f.start()
        f.wait_ready()
        request = f.post("/queue/me/app", {"go": str(go)}).json["request_id"]
        until(lambda: told(f, request) == ["before"], within_s=STEP_S, what="the first line")
        kill_router(f)
        go.touch()
        status = f"/queue/me/app/requests/{request}/status?logs=1"
        end = until(
            lambda: s if (s := f.get(status).json)["status"] == "COMPLETED" else {},
            within_s=STEP_S,
            what="it has ended",
        )
        assert [line["message"] for line in end["logs"]] == ["before", "after", "before", "after"]
        assert f.get(f"/queue/me/app/requests/{request}").json == "done"
