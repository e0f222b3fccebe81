"""The same app on the oldest SDK that we serve, in an environment of its own (`make test` installs it)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from falctl.wire import EXIT_RETIRED
from tests.compat.sockets import closed, say, talking
from tests.host.harness import REPOSITORY, STEP_S, Host, idle

pytestmark = pytest.mark.process

PYTHON = Path(os.environ.get("FALCTL_TEST_FAL_1_60", REPOSITORY / ".venv/fal-1.60/bin/python"))
APP = "tests/compat/fal_probe_app.py::Probe"


@pytest.fixture
def probe() -> Iterator[Host]:
    assert PYTHON.exists(), "no environment with fal 1.60: `make .venv/fal-1.60/.installed` makes it"
    with Host(APP, python=str(PYTHON), environ={"FAL_KEY": "real:secret"}) as host:
        yield host


def test_it_serves_gives_hints_and_ends_as_on_the_newest(probe: Host) -> None:
    assert probe.ask("GET", "/health").headers["x-fal-runner-hints"] == ""
    reply = probe.post("/", {"what": "load", "arg": "m"}, {"X-Fal-Runner-Hint": "m"})
    assert (reply.status, reply.timings["cache"]) == (200, "disk")
    assert reply.headers["x-fal-runner-hints"] == "m"
    assert all(name.startswith("app") for name in [reply.json["thread"], *reply.json["hint_threads"]])
    assert probe.post("/", {"what": "app"}).status == 418
    assert probe.stop() == 0
    assert "TEARDOWN" in probe.output()


def test_what_it_stores_stays_here_and_its_key_is_gone(probe: Host) -> None:
    made: dict[str, str] = probe.post("/store").json
    assert made.pop("data") == probe.spec.data_dir
    assert all((probe.files / url.rpartition("/")[2]).stat().st_size > 0 for url in made.values())
    assert "FAL_KEY" not in probe.post("/environ").json


def test_a_gpu_error_ends_its_runner(probe: Host) -> None:
    assert probe.post("/", {"what": "oom"}).status == 503
    assert probe.process.wait(timeout=STEP_S) == EXIT_RETIRED


def test_its_realtime_runs_on_the_apps_threads_and_its_websockets_hold_slots() -> None:
    with Host("tests/compat/fal_sockets_app.py::Talk", python=str(PYTHON)) as host:
        with talking(host, "/realtime") as websocket:
            told = say(websocket, model="m", n=21)
            assert told["n"] == 42
            assert told["thread"].startswith("app")
            assert say(websocket, n=-1)["error"] == "INTERNAL_ERROR"
        idle(host)
        assert host.row.hints == ("m",)
        with talking(host, "/raw") as websocket:
            websocket.send("close")
            assert closed(websocket) == (4001, "as you wish")
