"""The status of a queued job, pushed: server-sent events as fal's clients read them, on a real router."""

from __future__ import annotations

import json
import sqlite3
import threading
from typing import Any

import httpx
import httpx_sse

from falctl import wire
from tests.router.client import Raw, ask, request_bytes
from tests.router.fake_host import PATIENCE_S, Gate
from tests.router.harness import Setup, serving
from tests.router.queue_calls import becomes, cancel, saying, submit
from tests.wait import until


class Stream:
    """One client that reads a status stream, on a thread of its own."""

    def __init__(self, setup: Setup, request: str, query: str = "", *, path: str = "") -> None:
        self.events: list[dict[str, Any]] = []
        self.status = 0
        self.headers = httpx.Headers()
        self.error: Exception | None = None
        path = path or f"/queue/owner/app/requests/{request}/status/stream"
        self._url = f"http://127.0.0.1:{setup.port}{path}{query}"
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            with (
                httpx.Client(timeout=4 * PATIENCE_S, trust_env=False) as client,
                httpx_sse.connect_sse(client, "GET", self._url) as source,
            ):
                self.status, self.headers = source.response.status_code, source.response.headers
                for event in source.iter_sse():
                    self.events.append(event.json())
        except httpx.HTTPError as error:
            self.error = error

    def wait(self, word: str) -> dict[str, Any]:
        """Return the first event that says *word*."""
        return until(
            lambda: next((event for event in self.events if event["status"] == word), {}),
            within_s=PATIENCE_S,
            what=f"the stream says {word}",
        )

    def end(self) -> list[dict[str, Any]]:
        """Return all events when the stream has ended as HTTP has it."""
        self._thread.join(2 * PATIENCE_S)
        assert not self._thread.is_alive(), "the stream does not end"
        assert self.error is None, self.error
        return self.events


def print_line(setup: Setup, request: str, *lines: str) -> None:
    """Put lines into a job's logs, as what its app prints gets there."""
    with sqlite3.connect(setup.home.jobs / "jobs.db", timeout=30) as connection:
        for line in lines:
            connection.execute(
                "INSERT INTO logs SELECT number, 1.0, 'STDOUT', ?, 100 FROM jobs WHERE id = ?",
                (line, request),
            )
    connection.close()


def test_a_job_is_followed_from_the_queue_to_its_end(setup: Setup) -> None:
    first, second = Gate(), Gate()
    gates = iter((first, second))

    async def handle(*args: Any) -> None:
        await next(gates)(*args)

    setup.hosts[0].handler = handle
    becomes(setup, submit(setup)["request_id"], "IN_PROGRESS")
    request = submit(setup)["request_id"]
    stream = Stream(setup, request)
    queued = stream.wait("IN_QUEUE")
    assert (queued["queue_position"], queued["request_id"]) == (0, request)
    assert stream.status == 200
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert stream.headers["x-fal-request-id"] == request
    first.opened.set()
    assert stream.wait("IN_PROGRESS")["logs"] is None
    second.opened.set()
    events = stream.end()
    assert [event["status"] for event in events] == ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
    told = ask(setup, "GET", f"/queue/owner/app/requests/{request}/status").json()
    assert events[-1] == told


def test_a_job_that_has_ended_is_told_at_once(setup: Setup) -> None:
    setup.hosts[0].handler = saying(422)
    request = submit(setup)["request_id"]
    becomes(setup, request, "COMPLETED")
    (only,) = Stream(setup, request).end()
    assert (only["status"], only["error"]) == ("COMPLETED", "Invalid status code: 422")


def test_an_end_between_asking_and_listening_is_not_missed(setup: Setup) -> None:
    for _ in range(30):
        request = submit(setup)["request_id"]
        assert Stream(setup, request).end()[-1]["status"] == "COMPLETED"


def test_places_in_the_queue_are_pushed_and_told_together(setup: Setup) -> None:
    gate = Gate()
    setup.hosts[0].handler = gate
    becomes(setup, submit(setup)["request_id"], "IN_PROGRESS")
    before = [submit(setup)["request_id"] for _ in range(20)]
    last = submit(setup)["request_id"]
    stream = Stream(setup, last)
    assert stream.wait("IN_QUEUE")["queue_position"] == 20
    for request in before:
        assert cancel(setup, request).status == 202
    until(lambda: stream.events[-1].get("queue_position") == 0, within_s=PATIENCE_S, what="it is the first")
    gate.opened.set()
    positions = [event["queue_position"] for event in stream.end() if event["status"] == "IN_QUEUE"]
    assert positions == sorted(positions, reverse=True)
    assert len(set(positions)) == len(positions)


def test_each_line_of_the_logs_is_told_once_and_those_of_the_end_too(setup: Setup) -> None:
    gate = Gate()
    setup.hosts[0].handler = gate
    request = submit(setup)["request_id"]
    becomes(setup, request, "IN_PROGRESS")
    print_line(setup, request, "one", "two é")
    with_logs, without = Stream(setup, request, "?logs=1"), Stream(setup, request)
    (one, two) = until(
        lambda: [line for event in with_logs.events for line in event["logs"] or []],
        within_s=PATIENCE_S,
        what="the lines that were there",
    )
    assert (one["message"], one["level"], one["source"]) == ("one", "STDOUT", "USER")
    assert two["message"] == "two é"
    without.wait("IN_PROGRESS")
    print_line(setup, request, "three")
    gate.opened.set()
    told = [line["message"] for event in with_logs.end() for line in event["logs"] or []]
    assert told == ["one", "two é", "three"]
    assert [event["logs"] for event in without.end()] == [None, None]
    again = [event["logs"] for event in Stream(setup, request, "?logs=true").end()]
    assert [[line["message"] for line in lines] for lines in again] == [told]


def test_many_follow_one_job(setup: Setup) -> None:
    gate = Gate()
    setup.hosts[0].handler = gate
    request = submit(setup)["request_id"]
    becomes(setup, request, "IN_PROGRESS")
    streams = [Stream(setup, request) for _ in range(50)]
    for stream in streams:
        stream.wait("IN_PROGRESS")
    gate.opened.set()
    for stream in streams:
        assert [event["status"] for event in stream.end()] == ["IN_PROGRESS", "COMPLETED"]


def test_silence_is_broken_by_comments(setup: Setup) -> None:
    gate = Gate()
    setup.hosts[0].handler = gate
    request = submit(setup)["request_id"]
    becomes(setup, request, "IN_PROGRESS")
    path = f"/queue/owner/app/requests/{request}/status/stream"
    with Raw(setup, request_bytes(path, method="GET")) as raw:
        assert b"IN_PROGRESS" in raw.read_until(b": ping\n\n")
    gate.opened.set()


def test_a_client_that_leaves_is_forgotten(setup: Setup) -> None:
    gate = Gate()
    setup.hosts[0].handler = gate
    request = submit(setup)["request_id"]
    becomes(setup, request, "IN_PROGRESS")
    path = f"/queue/owner/app/requests/{request}/status/stream"
    for _ in range(20):
        with Raw(setup, request_bytes(path, method="GET")) as raw:
            raw.read_until(b"\n\n")
    until(lambda: setup.status()["watching"] == 0, within_s=PATIENCE_S, what="nobody watches")
    gate.opened.set()


def test_a_head_of_a_stream_has_no_body_and_ends(setup: Setup) -> None:
    gate = Gate()
    setup.hosts[0].handler = gate
    request = submit(setup)["request_id"]
    reply = ask(setup, "HEAD", f"/queue/owner/app/requests/{request}/status/stream")
    assert (reply.status, reply.body) == (200, b"")
    assert reply.value("content-type") == "text/event-stream; charset=utf-8"
    gate.opened.set()


def test_a_drain_ends_streams_cleanly_after_what_ran_has_ended() -> None:
    with serving() as setup:
        gate = Gate()
        setup.hosts[0].handler = gate
        running, waiting = submit(setup)["request_id"], submit(setup)["request_id"]
        becomes(setup, running, "IN_PROGRESS")
        first, second = Stream(setup, running), Stream(setup, waiting)
        first.wait("IN_PROGRESS")
        second.wait("IN_QUEUE")
        assert setup.router is not None
        setup.router.send(wire.Drain(600.0))
        until(lambda: setup.status()["draining"], within_s=PATIENCE_S, what="it has heard that it ends")
        gate.opened.set()
        setup.router.expect(wire.Drained)
        assert first.end()[-1]["status"] == "COMPLETED"
        assert second.end()[-1]["status"] == "IN_QUEUE"


def test_a_stop_ends_streams_cleanly() -> None:
    with serving() as setup:
        gate = Gate()
        setup.hosts[0].handler = gate
        request = submit(setup)["request_id"]
        stream = Stream(setup, request)
        stream.wait("IN_PROGRESS")
        assert setup.router is not None
        setup.router.send(wire.Stop())
        assert stream.end()[-1]["status"] == "IN_PROGRESS"
        assert setup.router.process.wait(PATIENCE_S) == 0
        gate.opened.set()


def test_the_words_of_a_stream_are_ascii(setup: Setup) -> None:
    request = submit(setup)["request_id"]
    becomes(setup, request, "COMPLETED")
    print_line(setup, request, "caf\u00e9 \U0001f600")
    reply = ask(setup, "GET", f"/queue/owner/app/requests/{request}/status/stream?logs=1")
    assert reply.body.isascii()
    assert json.loads(reply.body.removeprefix(b"data: "))["logs"][0]["message"] == "caf\u00e9 \U0001f600"
