"""What apps print, by request, as clients read it: in a job's status, and under /falctl/logs."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from datetime import datetime
from typing import Any

import pytest
from starlette.types import Send

from falctl import wire
from falctl.core.types import RequestId
from falctl.router.jobs.records import LogLine
from falctl.router.own.request_logs import DIRECT_BYTES_MAX, DIRECT_REQUESTS_MAX, _Direct
from tests.router.client import Later, ask
from tests.router.fake_host import PATIENCE_S, Gate, Handler, Seen, say_ok
from tests.router.harness import Setup, serving, waits
from tests.router.queue_calls import becomes, in_turn, saying, status, submit
from tests.router.test_queue_stream import Stream
from tests.wait import until

AT = 1_800_000_000.25


def printed(request: str, *texts: str, first: int = 0, again: bool = False) -> wire.Printed:
    lines = [(AT + first + n, "STDOUT", text) for n, text in enumerate(texts)]
    return wire.Printed(1, request, lines, again)


def printing(setup: Setup, *texts: str, then: Handler = say_ok) -> Handler:
    """Return a handler that prints, and answers."""

    async def handle(seen: Seen, send: Send) -> None:
        setup.hosts[0]._emit(printed(seen.request, *texts))
        await then(seen, send)

    return handle


def messages(found: dict[str, Any]) -> list[str]:
    return [line["message"] for line in found["logs"]]


def logs(setup: Setup, request: str, query: str = "") -> dict[str, Any]:
    reply = ask(setup, "GET", f"/falctl/logs/{request}{query}")
    assert reply.status == 200, reply.body
    table: dict[str, Any] = reply.json()
    assert table["schema"] == 1
    return table


def told(setup: Setup, request: str) -> list[str]:
    return [line["message"] for line in logs(setup, request)["lines"]]


def stored(setup: Setup) -> list[str]:
    """Return the lines of all jobs on the disk."""
    with contextlib.closing(sqlite3.connect(setup.home.jobs / "jobs.db", timeout=30)) as connection:
        return [text for (text,) in connection.execute("SELECT message FROM logs")]


# --- queued jobs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["?logs=1", "?logs=true"])
def test_a_completed_status_has_all_lines_in_fals_form(setup: Setup, query: str) -> None:
    setup.hosts[0].handler = printing(setup, "one", "two")
    request = submit(setup)["request_id"]
    becomes(setup, request, "COMPLETED")
    found = status(setup, request, query)
    assert messages(found) == ["one", "two"]
    line = found["logs"][0]
    assert (line["level"], line["source"]) == ("STDOUT", "USER")
    at = datetime.fromisoformat(line["timestamp"])
    assert at.timestamp() == AT
    assert at.tzinfo is not None
    assert status(setup, request)["logs"] is None


def test_while_it_runs_the_lines_grow(setup: Setup) -> None:
    host, gate = setup.hosts[0], Gate()
    host.handler = gate
    request = submit(setup)["request_id"]
    becomes(setup, request, "IN_PROGRESS")
    assert status(setup, request, "?logs=1")["logs"] == []
    for count in range(1, 4):
        host.emit(printed(request, f"line {count}", first=count))
        until(
            lambda n=count: len(status(setup, request, "?logs=1")["logs"]) == n,  # type: ignore[misc]
            within_s=PATIENCE_S,
            what=f"{count} lines",
        )
    gate.opened.set()
    becomes(setup, request, "COMPLETED")
    assert messages(status(setup, request, "?logs=1")) == ["line 1", "line 2", "line 3"]


def test_lines_that_come_late_are_waited_for_until_the_runner_says_that_it_is_over(setup: Setup) -> None:
    host = setup.hosts[0]
    host.tells_release = False
    try:
        request = submit(setup)["request_id"]
        becomes(setup, request, "COMPLETED")
        later = Later()
        later.ask(setup, "GET", f"/queue/owner/app/requests/{request}/status?logs=1")
        threading.Event().wait(0.3)
        assert later.replies == [], "it waits for the runner's word"
        host.emit(printed(request, "late"))
        host.emit(wire.Released(1, request))
        (reply,) = later.all()
        assert messages(reply.json()) == ["late"]
    finally:
        host.tells_release = True


def test_an_attempt_that_was_lost_keeps_its_lines(setup: Setup) -> None:
    broken = saying(503, b"{}")
    setup.hosts[0].handler = in_turn(
        printing(setup, "the first attempt", then=broken), printing(setup, "the second")
    )
    request = submit(setup)["request_id"]
    becomes(setup, request, "COMPLETED")
    assert messages(status(setup, request, "?logs=1")) == ["the first attempt", "the second"]


def test_a_router_that_is_killed_loses_no_line_of_what_runs() -> None:
    with serving() as setup:
        host, gate = setup.hosts[0], Gate()
        host.handler = gate
        request = submit(setup)["request_id"]
        becomes(setup, request, "IN_PROGRESS")
        host.emit(printed(request, "before"))
        until(lambda: stored(setup) == ["before"], within_s=PATIENCE_S, what="the line is on the disk")
        assert setup.router is not None
        setup.router.kill()
        host.recap = [printed(request, "before", "meanwhile", again=True)]
        setup.start_router()
        until(
            lambda: told(setup, request) == ["before", "meanwhile"],
            within_s=PATIENCE_S,
            what="what the host tells again",
        )
        host.emit(printed(request, "after", first=2))
        gate.opened.set()
        becomes(setup, request, "COMPLETED")
        found = messages(status(setup, request, "?logs=1"))
        assert found == ["before", "meanwhile", "after"]


def test_lines_outlive_the_router_that_heard_them() -> None:
    with serving() as setup:
        setup.hosts[0].handler = printing(setup, "kept")
        request = submit(setup)["request_id"]
        becomes(setup, request, "COMPLETED")
        assert messages(status(setup, request, "?logs=1")) == ["kept"]
        assert setup.router is not None
        setup.router.send(wire.Stop())
        assert setup.router.process.wait(PATIENCE_S) == 0
        setup.start_router()
        assert messages(status(setup, request, "?logs=1")) == ["kept"]
        assert logs(setup, request)["state"] == "ended"


def test_new_lines_are_pushed_to_a_status_stream(setup: Setup) -> None:
    host, gate = setup.hosts[0], Gate()
    host.handler = gate
    request = submit(setup)["request_id"]
    stream = Stream(setup, request, "?logs=1")
    stream.wait("IN_PROGRESS")

    def pushed() -> list[str]:
        return [line["message"] for event in list(stream.events) for line in event.get("logs") or ()]

    for count in (1, 2):
        host.emit(printed(request, f"line {count}", first=count))
        until(lambda n=count: len(pushed()) == n, within_s=PATIENCE_S, what=f"{count} lines")  # type: ignore[misc]
    host.handler = say_ok
    gate.opened.set()
    stream.end()
    assert pushed() == ["line 1", "line 2"]


# --- direct requests, and the path of ours --------------------------------------------------------


def test_a_direct_request_is_remembered_in_memory(setup: Setup) -> None:
    setup.hosts[0].handler = printing(setup, "one", "two", "three")
    request = str(ask(setup, body=b"{}").value("x-fal-request-id"))
    until(lambda: logs(setup, request)["state"] == "ended", within_s=PATIENCE_S, what="it is over")
    found = logs(setup, request, "?after=1")
    assert (found["request"], found["next"]) == (request, 3)
    assert found["lines"] == [
        {"at": AT + n, "level": "STDOUT", "message": text} for n, text in ((1, "two"), (2, "three"))
    ]
    assert told(setup, request[:13]) == ["one", "two", "three"]


def test_lines_of_a_direct_request_that_are_told_again_count_once(setup: Setup) -> None:
    host, gate = setup.hosts[0], Gate()
    host.handler = gate
    later = Later()
    later.ask(setup, "POST", "/", body=b"{}")
    until(lambda: host.executing, within_s=PATIENCE_S, what="it runs")
    (request,) = host.executing
    host.emit(printed(request, "a", "b"))
    host.emit(printed(request, "a", "b", "c", again=True))
    until(lambda: told(setup, request) == ["a", "b", "c"], within_s=PATIENCE_S, what="three lines")
    assert logs(setup, request)["state"] == "running"
    gate.opened.set()
    assert [reply.status for reply in later.all()] == [200]


def test_a_request_that_printed_nothing_is_known_and_another_is_not(setup: Setup) -> None:
    request = str(ask(setup, body=b"{}").value("x-fal-request-id"))
    assert logs(setup, request)["lines"] == []
    reply = ask(setup, "GET", "/falctl/logs/no-such-request")
    assert reply.status == 404
    assert "nothing is remembered of request no-such-request" in reply.json()["detail"]
    assert ask(setup, "GET", f"/falctl/logs/{request}?after=-1").status == 400


def test_a_job_that_waits_says_so() -> None:
    with serving() as setup:
        gate = Gate()
        setup.hosts[0].handler = gate
        first = submit(setup)["request_id"]
        becomes(setup, first, "IN_PROGRESS")
        second = submit(setup)["request_id"]
        waits(setup, 1)
        assert logs(setup, second) == {
            "schema": 1,
            "request": second,
            "state": "waiting",
            "next": 0,
            "lines": [],
        }
        gate.opened.set()
        becomes(setup, second, "COMPLETED")


def test_memory_for_direct_requests_is_bounded_in_number_and_bytes() -> None:
    ring = _Direct()
    for n in range(DIRECT_REQUESTS_MAX + 1):
        ring.add(RequestId(str(n)), [LogLine(1.0, "STDOUT", "x")], again=False)
    assert ring.lines(RequestId("0")) is None
    assert ring.lines(RequestId("1")) is not None
    huge = [LogLine(1.0, "STDOUT", "x" * (DIRECT_BYTES_MAX // 2))]
    for name in ("a", "b", "c"):
        ring.add(RequestId(name), huge, again=False)
    assert [name for name in "abc" if ring.lines(RequestId(name)) is not None] == ["c"]
