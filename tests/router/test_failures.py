"""What clients see, and where slots end up, when runners and clients go away at every point of a request."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest
from starlette.types import Send

from falctl import wire
from falctl.core.scheduler import BOUNCES_MAX
from tests.router.client import Later, Raw, ask, request_bytes
from tests.router.fake_host import PATIENCE_S, Gate, Seen, answer, say_ok
from tests.router.harness import Setup, idle, log_of, serving, waits
from tests.wait import until


@pytest.fixture
def one() -> Iterator[Setup]:
    with serving() as setup:
        yield setup


@pytest.fixture
def two() -> Iterator[Setup]:
    with serving(runners=2) as setup:
        yield setup


# --- bounces -----------------------------------------------------------------------------------


def test_a_bounced_request_goes_elsewhere_with_its_body(two: Setup) -> None:
    two.hosts[0].bounces = 1
    replies = [ask(two, body=b"the body") for _ in range(2)]
    assert [reply.status for reply in replies] == [200, 200]
    assert {reply.value("x-falctl-runner") for reply in replies} == {"1"}
    assert [seen.body for seen in two.hosts[1].seen] == [b"the body"] * 2
    assert two.hosts[0].seen == []


def test_a_runner_that_bounced_is_tried_again_when_it_tells_of_its_slots(one: Setup) -> None:
    one.hosts[0].bounces = 1
    later = Later()
    later.ask(one, body=b"again")
    waits(one, 1)
    one.hosts[0].drop_streams()  # the next stream begins with a Hello
    assert [reply.status for reply in later.all()] == [200]
    assert [seen.body for seen in one.hosts[0].seen] == [b"again"]
    assert "stream.resync" not in log_of(one)


def test_a_runner_that_bounced_and_tells_nothing_is_asked_for_its_slots(one: Setup) -> None:
    one.hosts[0].bounces = 1
    assert ask(one).status == 200
    assert "stream.resync" in log_of(one)


def test_a_request_that_is_bounced_again_and_again_is_refused(one: Setup) -> None:
    host = one.hosts[0]
    host.bounces = BOUNCES_MAX
    later = Later()
    later.ask(one)
    for left in range(BOUNCES_MAX - 1, 0, -1):
        until(lambda n=left: host.bounces <= n, within_s=PATIENCE_S, what="bounced")  # type: ignore[misc]
        waits(one, 1)
        opened = host.streams_opened
        host.drop_streams()
        until(lambda n=opened: host.streams_opened > n, within_s=PATIENCE_S, what="stream")  # type: ignore[misc]
    (reply,) = later.all()
    assert reply.status == 503
    assert "again and again" in reply.json()["detail"]
    assert reply.value("x-fal-error-type") == "runner_scheduling_failure"
    assert int(reply.value("retry-after") or "0") >= 1
    assert host.seen == []


def test_an_app_s_own_503_is_no_bounce(two: Setup) -> None:
    two.hosts[0].handler = lambda _, send: answer(send, b"busy", status=503)
    reply = ask(two)
    assert (reply.status, reply.body, reply.value("x-falctl-origin")) == (503, b"busy", "app")
    assert two.hosts[1].seen == []


def test_a_runner_that_cannot_be_reached_has_not_seen_the_request(two: Setup) -> None:
    later = Later()
    two.hosts[0].call(two.hosts[0].path.unlink)  # its stream stands, new connections fail
    for _ in range(4):
        later.ask(two, body=b"x")
    assert [reply.status for reply in later.all()] == [200] * 4
    assert len(two.hosts[1].seen) == 4


# --- the runner goes ---------------------------------------------------------------------------


def test_a_runner_lost_before_its_headers_is_503_and_the_request_is_not_sent_again(two: Setup) -> None:
    gate = Gate()
    two.hosts[0].handler = gate
    later = Later()
    later.ask(two, body=b"once")
    until(lambda: two.hosts[0].seen, within_s=PATIENCE_S, what="request arrived")
    two.hosts[0].close()
    (reply,) = later.all()
    assert reply.status == 503
    assert reply.json() == {
        "detail": "runner 0 was lost while it worked on this request",
        "error_type": "runner_disconnected",
    }
    assert reply.value("x-fal-error-type") == "runner_disconnected"
    assert reply.value("x-fal-request-id") == two.hosts[0].seen[0].request
    assert reply.value("x-falctl-origin") == "router"
    assert two.hosts[1].seen == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "POST"])
def test_no_method_is_sent_twice_on_a_connection_that_breaks(one: Setup, method: str) -> None:
    host = one.hosts[0]
    assert ask(one, method, "/warm").status == 200  # so that the next request meets a pooled connection
    made = host.connections_made

    async def break_off(_: Seen, send: Send) -> None:
        send.__self__.transport.abort()  # type: ignore[attr-defined]

    host.handler = break_off
    reply = ask(one, method, "/once")
    assert reply.status == 503
    assert [seen.raw_path for seen in host.seen].count(b"/once") == 1
    assert host.connections_made == made, "the pooled connection was used"
    host.handler = say_ok
    assert ask(one).status == 200


@pytest.mark.parametrize("length", [None, 100])
def test_a_runner_lost_after_its_headers_breaks_the_client_s_connection(
    one: Setup, length: int | None
) -> None:
    async def half(_: Seen, send: Send) -> None:
        headers = [] if length is None else [(b"content-length", str(length).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        await asyncio.sleep(0.1)
        send.__self__.transport.abort()  # type: ignore[attr-defined]

    one.hosts[0].handler = half
    with Raw(one, request_bytes()) as raw:
        answered = raw.read_all()
    assert answered.startswith(b"HTTP/1.1 200 ")
    assert b"half" in answered
    assert not answered.endswith(b"0\r\n\r\n")
    one.hosts[0].handler = say_ok
    assert ask(one).status == 200
    assert "Traceback" not in log_of(one)
    assert log_of(one).count("request.broken") == 1
    idle(one)


def test_a_truncated_answer_of_a_killed_runner_is_not_ended_properly(one: Setup) -> None:
    begun = threading.Event()

    async def endless(_: Seen, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x" * 100, "more_body": True})
            begun.set()
            await asyncio.sleep(0.01)

    one.hosts[0].handler = endless
    with Raw(one, request_bytes()) as raw:
        assert begun.wait(PATIENCE_S)
        one.hosts[0].close()
        assert not raw.read_all().endswith(b"0\r\n\r\n")


def test_requests_wait_for_a_runner_that_comes_back(one: Setup) -> None:
    later = Later()
    one.hosts[0].close()
    one.change(0, 1, "backoff", "exited with code -9")
    later.ask(one, body=b"patient")
    waits(one, 1)
    one.change(0, 2, "starting")
    new = one.add_host(0, epoch=2)
    assert one.status()["queued"] == 1
    one.change(0, 2, "ready")
    assert [reply.status for reply in later.all()] == [200]
    assert [seen.body for seen in new.seen] == [b"patient"]


def test_when_every_runner_has_failed_nobody_waits(one: Setup) -> None:
    later = Later()
    one.hosts[0].close()
    one.change(0, 1, "backoff")
    later.ask(one)
    waits(one, 1)
    one.change(0, 1, "failed", "exited 6 times")
    (waiting,) = later.all()
    for reply in (waiting, ask(one)):
        assert reply.status == 503
        assert reply.json()["error_type"] == "runner_scheduling_failure"
        assert "falctl status" in reply.json()["detail"]
    health = ask(one, "GET", "/health")
    assert (health.status, health.json()["runners_ready"]) == (503, 0)


def test_a_broken_stream_is_opened_again(one: Setup) -> None:
    opened = one.hosts[0].streams_opened
    one.hosts[0].drop_streams()
    until(lambda: one.hosts[0].streams_opened == opened + 1, within_s=PATIENCE_S, what="a new stream")
    assert ask(one).status == 200


def test_nothing_is_sent_to_a_runner_whose_slots_are_not_heard_of(one: Setup) -> None:
    one.hosts[0].streams_refused = 10_000
    one.hosts[0].drop_streams()
    until(lambda: "runner.stream_lost" in log_of(one), within_s=PATIENCE_S, what="stream lost")
    later = Later()
    later.ask(one)
    waits(one, 1)
    assert one.hosts[0].seen == []
    one.hosts[0].streams_refused = 0
    assert [reply.status for reply in later.all()] == [200]


def test_a_stream_is_not_sought_again_once_the_supervisor_says_that_the_runner_is_gone(one: Setup) -> None:
    one.put_life(0, 1, "backoff")
    opened = one.hosts[0].streams_opened
    one.hosts[0].drop_streams()
    until(lambda: "runner.stream_lost" in log_of(one), within_s=PATIENCE_S, what="stream lost")
    threading.Event().wait(0.5)  # ten times as long as the first pause before another try
    assert one.hosts[0].streams_opened == opened


def test_a_slot_whose_release_nobody_heard_comes_back_with_the_next_hello(one: Setup) -> None:
    one.hosts[0].tells_release = False
    assert ask(one).status == 200
    assert ask(one).status == 200, "after RESYNC_S the host is asked anew"
    assert "stream.resync" in log_of(one)


def test_news_of_another_epoch_are_dropped(one: Setup) -> None:
    gate = Gate()
    one.hosts[0].handler = gate
    later = Later()
    later.ask(one)
    until(lambda: one.hosts[0].executing, within_s=PATIENCE_S, what="executing")
    later.ask(one)
    waits(one, 1)
    one.hosts[0].emit(wire.Released(7, one.hosts[0].executing[0]))
    one.hosts[0].emit(wire.Released(1, "of somebody else"))
    assert one.status()["queued"] == 1
    gate.opened.set()
    assert [reply.status for reply in later.all()] == [200, 200]


def test_nonsense_on_a_stream_breaks_the_stream_only(one: Setup) -> None:
    opened = one.hosts[0].streams_opened

    def nonsense() -> None:
        for queue in one.hosts[0]._streams:
            queue.put_nowait(b"{what\n")

    one.hosts[0].call(nonsense)
    until(lambda: one.hosts[0].streams_opened > opened, within_s=PATIENCE_S, what="a new stream")
    assert ask(one).status == 200
    assert "stream.nonsense" in log_of(one)
    assert "Traceback" not in log_of(one)


# --- the client goes ---------------------------------------------------------------------------


def test_a_client_that_leaves_the_queue_is_dropped(one: Setup) -> None:
    gate = Gate()
    one.hosts[0].handler = gate
    later = Later()
    later.ask(one, path="/first")
    until(lambda: one.hosts[0].executing, within_s=PATIENCE_S, what="executing")
    with Raw(one, request_bytes("/second", body=b"x" * 1000)):
        waits(one, 1)
        assert one.status()["queued_bytes"] == 1000
    waits(one, 0)
    assert one.status()["queued_bytes"] == 0
    gate.opened.set()
    assert [reply.status for reply in later.all()] == [200]
    assert [seen.raw_path for seen in one.hosts[0].seen] == [b"/first"]


def test_a_client_that_leaves_while_its_request_runs_cancels_it_and_the_slot_stays_taken(one: Setup) -> None:
    gate = Gate()
    one.hosts[0].handler = gate
    with Raw(one, request_bytes("/left")):
        until(lambda: one.hosts[0].executing, within_s=PATIENCE_S, what="executing")
    until(lambda: one.hosts[0].cancelled, within_s=PATIENCE_S, what="cancelled")
    assert one.hosts[0].cancelled == [one.hosts[0].seen[0].request]
    later = Later()
    later.ask(one, path="/next")
    waits(one, 1)
    assert [seen.raw_path for seen in one.hosts[0].seen] == [b"/left"]
    gate.opened.set()
    assert [reply.status for reply in later.all()] == [200]
    assert one.hosts[0].cancelled == [one.hosts[0].seen[0].request]


def test_a_client_that_leaves_a_stream_cancels_it_too(one: Setup) -> None:
    ended = threading.Event()

    async def endless(_: Seen, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not one.hosts[0].cancelled:
            await send({"type": "http.response.body", "body": b"x" * 100, "more_body": True})
            await asyncio.sleep(0.01)
        await send({"type": "http.response.body", "body": b""})
        ended.set()

    one.hosts[0].handler = endless
    with Raw(one, request_bytes()) as raw:
        raw.read_until(b"xxx")
    assert ended.wait(PATIENCE_S)
    idle(one)
    assert "Traceback" not in log_of(one)


def test_an_answered_request_is_never_cancelled(one: Setup) -> None:
    for _ in range(5):
        with Raw(one, request_bytes()) as raw:
            raw.read_until(b"ok")
    assert ask(one).status == 200
    assert one.hosts[0].cancelled == []


def test_a_client_that_leaves_by_reset_is_no_different(one: Setup) -> None:
    gate = Gate()
    one.hosts[0].handler = gate
    raw = Raw(one, request_bytes())
    until(lambda: one.hosts[0].executing, within_s=PATIENCE_S, what="executing")
    raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    raw.close()
    until(lambda: one.hosts[0].cancelled, within_s=PATIENCE_S, what="cancelled")
    gate.opened.set()
    idle(one)


def test_a_pipelined_request_waits_for_the_answer_before_it(one: Setup) -> None:
    with Raw(one, request_bytes("/a") + request_bytes("/b", b"Connection: close")) as raw:
        assert raw.read_all().count(b"HTTP/1.1 200 ") == 2
    assert [seen.raw_path for seen in one.hosts[0].seen] == [b"/a", b"/b"]


def test_a_client_that_leaves_with_a_pipelined_request_cancels_the_first(one: Setup) -> None:
    async def steps(_: Seen, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        left = 20
        while left:
            left -= bool(one.hosts[0].cancelled)
            await send({"type": "http.response.body", "body": b"x" * 100, "more_body": True})
            await asyncio.sleep(0.01)
        await send({"type": "http.response.body", "body": b""})

    one.hosts[0].handler = steps
    with Raw(one, request_bytes("/a") + request_bytes("/b")) as raw:
        raw.read_until(b"xxx")
    until(lambda: one.hosts[0].cancelled, within_s=PATIENCE_S, what="cancelled")
    idle(one)
    assert [seen.raw_path for seen in one.hosts[0].seen] == [b"/a"]
    assert "WARNING" not in log_of(one), "nothing is written to a connection that is gone"
