"""Webhooks of queued jobs: real receivers on loopback, a real router that is killed in between."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import stat
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature

from falctl import wire
from falctl.clock import wall_clock
from falctl.core.retries import Outcome
from falctl.core.types import RequestId
from falctl.router.jobs.envelope import Envelope, pack
from falctl.router.jobs.records import Answer, Ending, StoreLimits
from falctl.router.jobs.saving import new_job
from falctl.router.jobs.store import JobStore
from tests.router.client import ask
from tests.router.fake_host import PATIENCE_S, Gate, Handler, say_ok
from tests.router.harness import Setup, idle, log_of, serving, waits
from tests.router.queue_calls import becomes, cancel, result
from tests.router.queue_calls import saying as app_saying
from tests.router.receiver import Heard, Receiver, saying, verify
from tests.wait import until

JOB = RequestId("ended-before")
KEYS = "/fal/rest/.well-known/jwks.json"


@pytest.fixture
def setup(shared: Setup) -> Iterator[Setup]:
    shared.hosts[0].handler = app_saying(200, b'{"images": [], "seed": 1.10}')
    yield shared
    waits(shared, 0)
    idle(shared)
    none_pending(shared)


@pytest.fixture
def receiver(setup: Setup) -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver
        idle(setup)
        none_pending(setup)


def submit(setup: Setup, url: str, *, headers: dict[str, str] | None = None) -> str:
    query = urllib.parse.urlencode({"fal_webhook": url})
    reply = ask(setup, path=f"/queue/owner/app?{query}", body=b"{}", headers=headers)
    assert reply.status == 200, reply.body
    request: str = reply.json()["request_id"]
    return request


def restart(setup: Setup) -> None:
    assert setup.router is not None
    setup.router.kill()
    setup.start_router()


def make_due(setup: Setup) -> None:
    """Kill the router, let every webhook that waits be due now, and start another one."""
    assert setup.router is not None
    setup.router.kill()
    with sqlite3.connect(setup.home.jobs / "jobs.db") as connection:
        connection.execute("UPDATE webhooks SET next_at = 0")
    connection.close()
    setup.start_router()


def pending(setup: Setup) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(setup.home.jobs / "jobs.db")
    try:
        return connection.execute(
            "SELECT j.id, w.tries, w.next_at FROM webhooks w JOIN jobs j ON j.number = w.job"
        ).fetchall()
    finally:
        connection.close()


def unended(setup: Setup) -> int:
    connection = sqlite3.connect(setup.home.jobs / "jobs.db")
    try:
        count: int = connection.execute("SELECT count(*) FROM jobs WHERE ended_at IS NULL").fetchone()[0]
        return count
    finally:
        connection.close()


def none_pending(setup: Setup) -> None:
    until(lambda: not unended(setup), within_s=PATIENCE_S, what="every job has ended, and the disk says so")
    until(lambda: not pending(setup), within_s=PATIENCE_S, what="every webhook is delivered")


# --- what is told ----------------------------------------------------------------------------------


def test_the_end_of_a_job_is_told_signed_and_its_key_is_published(setup: Setup, receiver: Receiver) -> None:
    request = submit(setup, f"{receiver.url}/hook/here?a=1&b=%2F")
    (heard,) = receiver.wait()
    assert heard.path == "/hook/here?a=1&b=/" or heard.path == "/hook/here?a=1&b=%2F"
    assert heard.headers["content-type"] == "application/json"
    assert heard.json == {
        "request_id": request,
        "gateway_request_id": request,
        "status": "OK",
        "payload": {"images": [], "seed": 1.1},
    }
    assert b'"seed": 1.10' in heard.body, "as the app wrote it"
    keys = ask(setup, "GET", KEYS)
    assert keys.status == 200
    verify(heard, keys.json())
    assert abs(int(heard.headers["x-fal-webhook-timestamp"]) - wall_clock().timestamp()) < 300
    assert heard.headers["x-fal-webhook-request-id"] == request
    none_pending(setup)
    assert len(receiver.about(request)) == 1


@pytest.mark.parametrize("part", ["request-id", "user-id", "timestamp"])
def test_whatever_is_changed_on_the_way_is_noticed(setup: Setup, receiver: Receiver, part: str) -> None:
    submit(setup, receiver.url)
    (heard,) = receiver.wait()
    jwks = ask(setup, "GET", KEYS).json()
    with pytest.raises(InvalidSignature):
        verify(Heard(heard.path, heard.headers, heard.body + b" "), jwks)
    with pytest.raises(InvalidSignature):
        verify(Heard(heard.path, heard.headers | {f"x-fal-webhook-{part}": "1"}, heard.body), jwks)


@pytest.mark.parametrize(
    ("handler", "told"),
    [
        (
            app_saying(422, b'{"detail": [{"loc": ["body", "prompt"]}]}'),
            {
                "status": "ERROR",
                "error": "Invalid status code: 422",
                "payload": {"detail": [{"loc": ["body", "prompt"]}]},
            },
        ),
        (app_saying(200, b"\x89PNG"), {"status": "OK", "payload": None}),
        (app_saying(200, b'{"n": NaN}'), {"status": "OK", "payload": None}),
        (app_saying(200, b""), {"status": "OK", "payload": None}),
        (app_saying(200, b'"' + b"x" * (10 << 20) + b'"'), {"status": "OK", "payload": None}),
        (app_saying(200, b"[" * 5000 + b"]" * 5000), {"status": "OK", "payload": None}),
    ],
    ids=["an error", "no text", "no JSON number", "nothing", "too large", "too deep"],
)
def test_what_the_app_answered_is_told_as_it_is_or_why_not(
    setup: Setup, receiver: Receiver, handler: Handler, told: dict[str, Any]
) -> None:
    setup.hosts[0].handler = handler
    request = submit(setup, receiver.url)
    (heard,) = receiver.wait()
    told = told | {"request_id": request, "gateway_request_id": request}
    if told["payload"] is None:
        told["payload_error"] = heard.json["payload_error"]
        assert "fetch it from the queue" in told["payload_error"]
    assert heard.json == told
    verify(heard, ask(setup, "GET", KEYS).json())


def test_a_failure_of_the_platform_is_told_as_its_result_is(setup: Setup, receiver: Receiver) -> None:
    gate = Gate()
    setup.hosts[0].handler = gate
    becomes(setup, submit(setup, receiver.url), "IN_PROGRESS")
    late = submit(setup, receiver.url, headers={"x-fal-request-timeout": "0.2"})
    receiver.wait()
    gate.opened.set()
    (heard,) = receiver.about(late)
    assert (heard.json["status"], heard.json["error"]) == ("ERROR", "request timeout")
    assert heard.json["payload"] == result(setup, late).json()


def test_a_cancelled_job_is_told_as_a_failure(setup: Setup, receiver: Receiver) -> None:
    gate = Gate()
    setup.hosts[0].handler = gate
    running, waiting = submit(setup, receiver.url), submit(setup, receiver.url)
    becomes(setup, running, "IN_PROGRESS")
    assert cancel(setup, waiting).status == 202
    receiver.wait()
    gate.opened.set()
    (heard,) = receiver.about(waiting)
    assert heard.json["status"] == "ERROR"
    assert heard.json["payload"]["error_type"] == "client_cancelled"


# --- who is called ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "no http or https URL"),
        ("nonsense", "no http or https URL"),
        ("ftp://127.0.0.1/", "no http or https URL"),
        ("file:///etc/passwd", "no http or https URL"),
        ("http://", "no http or https URL"),
        ("http://127.0.0.1:99999/", "no URL"),
        ("http://[::1/", "no URL"),
        ("http://a..b/", "no URL"),
        ("http://127.0.0.1:0/", "no http or https URL"),
        ("http://me:secret@127.0.0.1/", "credentials"),
        ("http://127.0.0.1/a b", "blanks"),
        ("http://127.0.0.1/\r\nx", "blanks"),
        ("http://127.0.0.1/" + "x" * 2048, "2048 bytes"),
    ],
)
def test_what_is_no_address_is_refused_at_once(setup: Setup, url: str, says: str) -> None:
    query = urllib.parse.urlencode({"fal_webhook": url})
    reply = ask(setup, path=f"/queue/owner/app?{query}", body=b"{}")
    assert (reply.status, reply.json()["error_type"]) == (400, "bad_request")
    assert reply.json()["detail"].startswith("fal_webhook: ")
    assert says in reply.json()["detail"]
    assert "secret" not in log_of(setup)


def test_the_app_does_not_see_who_is_called(setup: Setup, receiver: Receiver) -> None:
    setup.hosts[0].seen.clear()
    submit(setup, receiver.url)
    receiver.wait()
    assert setup.hosts[0].seen[-1].query == b""


def test_redirects_are_not_followed(setup: Setup, receiver: Receiver) -> None:
    with Receiver(saying(307, ("location", f"{receiver.url}/elsewhere"))) as first:
        request = submit(setup, first.url)
        first.wait()
        until(lambda: [row[1] for row in pending(setup)] == [1], within_s=PATIENCE_S, what="it has failed")
        assert not receiver.heard
        first.react = saying(204)
        make_due(setup)
        first.wait(2)
        none_pending(setup)
    assert result(setup, request).status == 200


def test_an_answer_without_an_end_is_not_read(setup: Setup) -> None:
    left = threading.Event()

    def pour(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b"x" * 65536)
        except OSError:
            left.set()

    with Receiver(pour) as receiver:
        submit(setup, receiver.url)
        assert left.wait(PATIENCE_S), "the router reads on"
        none_pending(setup)


# --- until it is heard -----------------------------------------------------------------------------


def test_a_receiver_that_was_down_is_called_again_and_a_warning_said_so_once(setup: Setup) -> None:
    with Receiver() as gone:
        port = gone.port
    request = submit(setup, f"http://127.0.0.1:{port}/hook")
    ((_, tries, next_at),) = until(
        lambda: [row for row in pending(setup) if row[1]], within_s=PATIENCE_S, what="it has failed"
    )
    assert tries == 1
    assert next_at <= wall_clock().timestamp() + 7.0
    until(lambda: setup.status()["webhooks_failing"] == 1, within_s=PATIENCE_S, what="the status says so")
    assert log_of(setup).count("webhook.failed") == 1
    assert f"127.0.0.1:{port}" in log_of(setup)
    assert "/hook" not in log_of(setup), "a path may hold a secret"
    with Receiver(port=port) as back:
        (heard,) = back.wait()
        assert heard.json["request_id"] == request
        verify(heard, ask(setup, "GET", KEYS).json())
        none_pending(setup)
    until(lambda: setup.status()["webhooks_failing"] == 0, within_s=PATIENCE_S, what="and no more")
    assert log_of(setup).count("webhook.failed") == 1


def test_what_failed_is_counted_and_tried_again_after_a_restart(setup: Setup) -> None:
    with Receiver(saying(500)) as receiver:
        request = submit(setup, receiver.url)
        receiver.wait()
        until(lambda: [row[1] for row in pending(setup)] == [1], within_s=PATIENCE_S, what="it has failed")
        make_due(setup)
        receiver.wait(2)
        until(lambda: [row[1] for row in pending(setup)] == [2], within_s=PATIENCE_S, what="it has failed")
        assert setup.status()["webhooks_failing"] == 1
        receiver.react = saying(200)
        make_due(setup)
        none_pending(setup)
        assert len(receiver.about(request)) == 3
    assert setup.status()["webhooks_failing"] == 0


def test_after_ten_retries_it_is_given_up_and_the_log_says_so(setup: Setup) -> None:
    with Receiver(saying(404)) as receiver:
        submit(setup, receiver.url)
        until(lambda: [row[1] for row in pending(setup)] == [1], within_s=PATIENCE_S, what="it has failed")
        with sqlite3.connect(setup.home.jobs / "jobs.db") as connection:
            connection.execute("UPDATE webhooks SET tries = 10")
        connection.close()
        make_due(setup)
        none_pending(setup)
        assert len(receiver.heard) == 2
    until(lambda: "webhook.given_up" in log_of(setup), within_s=PATIENCE_S, what="the log says so")
    assert "tries=11: it answered 404" in log_of(setup)
    assert setup.status()["webhooks_failing"] == 0


def test_a_drain_waits_for_those_that_are_being_called_but_not_for_long() -> None:
    with serving() as setup, Receiver() as receiver:
        never = threading.Event()
        with Receiver(lambda _: (never.wait(60), None)[1]) as silent:
            submit(setup, silent.url)
            silent.wait()
            gate = Gate()
            setup.hosts[0].handler = gate
            last = submit(setup, receiver.url)
            becomes(setup, last, "IN_PROGRESS")
            assert setup.router is not None
            setup.router.send(wire.Drain(600.0))
            gate.opened.set()
            setup.router.expect(wire.Drained)
            assert len(receiver.about(last)) == 1
            never.set()


def test_a_router_killed_while_it_calls_calls_again(setup: Setup) -> None:
    never = threading.Event()
    with Receiver(lambda _: (never.wait(60), None)[1]) as receiver:
        request = submit(setup, receiver.url)
        receiver.wait()
        receiver.react = saying(200)
        restart(setup)
        receiver.wait(2)
        none_pending(setup)
        never.set()
        assert len(receiver.about(request)) == 2


def test_a_job_that_ended_just_before_its_router_was_killed_is_told_by_the_next(receiver: Receiver) -> None:
    setup = Setup()
    try:
        setup.add_host()

        async def end() -> None:
            store = JobStore(setup.home.jobs, StoreLimits(keep_s=3600.0, max_bytes=1 << 30))
            url = f"{receiver.url}/hook"
            envelope = Envelope("owner/app", "POST", b"/", b"", [], None, "me", webhook=url)
            await store.submit(new_job(JOB, pack(envelope), b"{}", envelope=envelope))
            ending = Ending(Outcome(200), 0.1, wall_clock().timestamp())
            await store.end(JOB, ending, Answer((), b'{"n": 1}'))
            store.close()

        asyncio.run(end())
        setup.start_router()
        (heard,) = receiver.wait()
        assert (heard.json["request_id"], heard.json["payload"]) == (JOB, {"n": 1})
        none_pending(setup)
    finally:
        setup.close()


def test_jobs_that_end_while_routers_are_killed_are_all_told(setup: Setup, receiver: Receiver) -> None:
    gate = Gate()
    setup.hosts[0].handler = gate
    requests = [submit(setup, f"{receiver.url}/{n}") for n in range(15)]
    becomes(setup, requests[0], "IN_PROGRESS")
    gate.opened.set()
    for _ in range(3):
        restart(setup)
    until(
        lambda: {heard.json["request_id"] for heard in receiver.heard} == set(requests),
        within_s=4 * PATIENCE_S,
        what="all are told",
    )
    none_pending(setup)
    keys = ask(setup, "GET", KEYS).json()
    for heard in receiver.heard:
        verify(heard, keys)


def test_a_receiver_that_never_answers_holds_up_nobody_else(setup: Setup, receiver: Receiver) -> None:
    released = threading.Event()

    def hang(handler: BaseHTTPRequestHandler) -> None:
        released.wait(60)
        saying(200)(handler)

    with Receiver(hang) as slow:
        held = [submit(setup, slow.url) for _ in range(12)]
        slow.wait(4)
        others = [submit(setup, receiver.url) for _ in range(12)]
        receiver.wait(12)
        assert {heard.json["request_id"] for heard in receiver.heard} == set(others)
        assert len(slow.heard) == 4, "one receiver is called by four at a time"
        released.set()
        slow.wait(12)
        none_pending(setup)
        assert {heard.json["request_id"] for heard in slow.heard} == set(held)


# --- what is kept for it ---------------------------------------------------------------------------


def test_the_key_is_private_and_the_same_after_a_restart(setup: Setup) -> None:
    before = ask(setup, "GET", KEYS).json()
    path = setup.home.webhook_key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir() if "webhook" in entry.name] == ["webhook.key"]
    restart(setup)
    assert ask(setup, "GET", KEYS).json() == before


def test_the_key_is_read_and_nothing_else(setup: Setup) -> None:
    assert ask(setup, "HEAD", KEYS).body == b""
    refused = ask(setup, "POST", KEYS, body=b"{}")
    assert (refused.status, refused.value("allow")) == (405, "GET, HEAD")
    assert ask(setup, "GET", "/fal/rest/.well-known/other").status == 404


def test_a_result_stays_until_its_webhook_is_delivered() -> None:
    with serving(config={"queue": {"keep": 0.001, "max_disk": "1MiB"}}) as setup:
        setup.hosts[0].handler = app_saying(200, json.dumps("x" * 300_000).encode())
        with Receiver(saying(500)) as receiver:
            told = [submit(setup, receiver.url) for _ in range(3)]
            receiver.wait(3)
            until(lambda: len(pending(setup)) == 3, within_s=PATIENCE_S, what="three wait")
            setup.hosts[0].handler = say_ok
            refused = ask(setup, path="/queue/o/a", body=b"x" * 300_000)
            assert (refused.status, refused.json()["error_type"]) == (507, "storage_full")
            assert [result(setup, request).status for request in told] == [200, 200, 200]
            receiver.react = saying(200)
            make_due(setup)
            none_pending(setup)
        until(
            lambda: ask(setup, path="/queue/o/a", body=b"x" * 300_000).status == 200,
            within_s=PATIENCE_S,
            what="then they leave",
        )


def test_a_spoilt_key_is_said_in_one_line() -> None:
    setup = Setup()
    try:
        setup.home.webhook_key.write_bytes(b"short")
        with pytest.raises(AssertionError):
            setup.start_router(wait_for_runners=False)
        assert setup.router is not None
        failed = next(m for m in setup.router.received if isinstance(m, wire.Failed))
        assert str(setup.home.webhook_key) in failed.message
        assert failed.exit_code == 1
    finally:
        setup.close()
