"""Logs by request, as fal's own client shows them of a real fal.App."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import fal_client
import pytest

from tests.compat.clients import Calling, calling
from tests.wait import until

pytestmark = pytest.mark.process

APP = f"{Path(__file__).parent / 'logs_app.py'}::LogsApp"
STEP_S = 60.0


@pytest.fixture(scope="module")
def c() -> Iterator[Calling]:
    with calling(APP, alias="logs-app") as one:
        yield one


def messages(logs: list[dict[str, Any]] | None) -> list[str]:
    return [line["message"] for line in logs or ()]


def test_subscribe_gets_the_logs_of_its_own_request_while_it_runs_and_at_its_end(
    c: Calling, tmp_path: Path
) -> None:
    seen: list[fal_client.Status] = []
    go = tmp_path / "go"

    def look(status: fal_client.Status) -> None:
        seen.append(status)
        if isinstance(status, fal_client.InProgress) and "first of me" in messages(status.logs):
            go.touch()

    result = c.fal.subscribe(c.app, {"name": "me", "until": str(go)}, with_logs=True, on_queue_update=look)
    assert result == "me"
    end = seen[-1]
    assert isinstance(end, fal_client.Completed)
    found = messages(end.logs)
    assert (found[0], found[-1]) == ("first of me", "last of me")
    assert any("steps: 100%" in line and "50/50" in line for line in found)
    assert len(found) < 10, "a bar is a few lines, not one for every step"
    assert {line["level"] for line in end.logs or ()} == {"STDOUT", "STDERR", "WARN"}
    for line in end.logs or ():
        assert line["source"] == "USER"
        assert datetime.fromisoformat(line["timestamp"]).tzinfo is not None


def test_two_at_a_time_keep_their_logs_apart(c: Calling, tmp_path: Path) -> None:
    go = tmp_path / "go"
    handles = [c.fal.submit(c.app, {"name": name, "until": str(go)}) for name in ("one", "two")]
    for handle in handles:
        until(
            lambda h=handle: isinstance(h.status(), fal_client.InProgress),  # type: ignore[misc]
            within_s=STEP_S,
            what="it runs",
        )
    go.touch()
    for name, handle in zip(("one", "two"), handles, strict=True):
        assert handle.get() == name
        end = handle.status(with_logs=True)
        assert isinstance(end, fal_client.Completed)
        found = "\n".join(messages(end.logs))
        assert f"first of {name}" in found
        assert f"a warning of {name}" in found
        assert ({"one", "two"} - {name}).pop() not in found


def test_a_bug_of_the_app_shows_its_traceback_in_the_logs_as_lines(c: Calling) -> None:
    handle = c.fal.submit(c.app, {}, path="/fail")
    with pytest.raises(fal_client.client.FalClientHTTPError):
        handle.get()
    end = handle.status(with_logs=True)
    assert isinstance(end, fal_client.Completed)
    lines = end.logs or []
    assert lines[0]["message"] == "before it fails"
    (failure,) = [line for line in lines if line["level"] == "ERROR"]
    assert failure["message"].startswith("Traceback (most recent call last):\n")
    assert failure["message"].endswith("\nValueError: an own bug")


def test_a_stream_prints_too_and_the_command_line_shows_it(c: Calling) -> None:
    reply = c.http("POST", f"/run/{c.app}/stream", json={})
    assert reply.text.count("data:") == 3
    request = reply.headers["x-fal-request-id"]
    followed = c.falctl.run("logs", "--request", request, "--follow", "--json")
    assert messages([json.loads(line) for line in followed.stdout.splitlines()]) == [
        "chunk 0",
        "chunk 1",
        "chunk 2",
    ]
    assert "setup is nobody's" in c.falctl.log
