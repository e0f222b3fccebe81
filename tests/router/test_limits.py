"""Sizes and deadlines of the edge."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from falctl.clock import monotonic_s
from tests.router.client import Raw, ask, request_bytes
from tests.router.fake_host import PATIENCE_S, Gate, Seen, answer, say_ok
from tests.router.harness import Setup, serving
from tests.wait import until

BODY_MAX = 200_000


@pytest.fixture(scope="module")
def hasty() -> Iterator[Setup]:
    """Short limits, so that they can be watched."""
    server = {
        "max_body": BODY_MAX,
        "header_timeout": 0.5,
        "body_timeout": 0.5,
        "send_timeout": 0.5,
        "keep_alive": 1.0,
    }
    with serving(config={"server": server}) as setup:
        yield setup


@pytest.fixture(scope="module")
def patient() -> Iterator[Setup]:
    """Limits that a busy machine keeps for us, too; idle connections stay."""
    server = {
        "max_body": BODY_MAX,
        "header_timeout": 0.5,
        "body_timeout": 2.0,
        "send_timeout": 2.0,
        "keep_alive": 3600,
    }
    with serving(config={"server": server}) as setup:
        yield setup


@pytest.fixture(autouse=True)
def _nothing_held(hasty: Setup, patient: Setup) -> Iterator[None]:
    for setup in (hasty, patient):
        setup.hosts[0].handler = say_ok
    yield
    until(lambda: hasty.status()["queued_bytes"] == 0, within_s=PATIENCE_S, what="all bytes given back")


def body_with(raw: Raw) -> tuple[bytes, bytes]:
    head, _, body = raw.read_all().partition(b"\r\n\r\n")
    return head, body


def closed_at(raw: Raw) -> float:
    """Return when the router had closed."""
    with contextlib.suppress(ConnectionError):
        while raw.socket.recv(1 << 16):
            pass
    return monotonic_s()


# --- bodies ------------------------------------------------------------------------------------


def test_a_body_of_the_largest_size_passes_and_arrives_whole(hasty: Setup) -> None:
    body = bytes(range(256)) * (BODY_MAX // 256)
    assert ask(hasty, body=body).status == 200
    assert hasty.hosts[0].seen[-1].body == body


def test_a_larger_body_is_413_even_to_a_client_that_sends_it_first(hasty: Setup) -> None:
    count = len(hasty.hosts[0].seen)
    reply = ask(hasty, body=b"x" * (32 << 20))  # far more than the sockets between us hold
    assert reply.status == 413
    assert reply.json()["error_type"] == "body_too_large"
    assert reply.value("connection") == "close"
    assert len(hasty.hosts[0].seen) == count


def test_an_announced_larger_body_is_413_before_a_byte_of_it_is_sent(hasty: Setup) -> None:
    with Raw(hasty, request_bytes("/", b"Content-Length: %d" % (BODY_MAX + 1))) as raw:
        assert raw.read_until(b"\r\n").startswith(b"HTTP/1.1 413 ")


def test_a_larger_body_in_chunks_is_413(hasty: Setup) -> None:
    with Raw(hasty, request_bytes("/", b"Transfer-Encoding: chunked")) as raw:
        chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
        for _ in range(BODY_MAX // 0x8000 + 1):
            raw.send(chunk)
        assert raw.read_until(b"\r\n").startswith(b"HTTP/1.1 413 ")


def test_a_body_in_chunks_reaches_the_app_with_a_length(hasty: Setup) -> None:
    with Raw(hasty, request_bytes("/", b"Transfer-Encoding: chunked", b"Connection: close")) as raw:
        raw.send(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
        assert raw.read_all().endswith(b"ok")
    seen = hasty.hosts[0].seen[-1]
    assert seen.body == b"abcde"
    assert seen.values("content-length") == [b"5"]
    assert seen.values("transfer-encoding") == []


def test_a_body_that_stops_coming_is_408(hasty: Setup) -> None:
    with Raw(hasty, request_bytes("/", b"Content-Length: 100") + b"half") as raw:
        head, body = body_with(raw)
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"server.body_timeout" in body


def test_a_body_that_comes_slowly_but_steadily_is_served(patient: Setup) -> None:
    with Raw(patient, request_bytes("/", b"Content-Length: 8", b"Connection: close")) as raw:
        for _ in range(8):
            threading.Event().wait(0.3)
            raw.send(b"x")
        assert raw.read_all().endswith(b"ok")


def test_a_client_that_leaves_in_mid_body_is_forgotten(hasty: Setup) -> None:
    count = len(hasty.hosts[0].seen)
    with Raw(hasty, request_bytes("/", b"Content-Length: 100") + b"half"):
        pass
    assert ask(hasty).status == 200
    assert len(hasty.hosts[0].seen) == count + 1


def test_expect_100_is_answered_before_the_body(hasty: Setup) -> None:
    with Raw(
        hasty, request_bytes("/", b"Expect: 100-continue", b"Content-Length: 3", b"Connection: close")
    ) as raw:
        assert raw.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        raw.send(b"abc")
        assert raw.read_all().startswith(b"HTTP/1.1 200 ")
    assert hasty.hosts[0].seen[-1].body == b"abc"
    assert hasty.hosts[0].seen[-1].values("expect") == []


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ((b"Content-Length: 999999999",), b"413"),
        ((b"Content-Length: 9", b"Origin: http://evil.example"), b"403"),
    ],
)
def test_expect_100_of_a_request_that_is_refused_gets_the_refusal_at_once(
    hasty: Setup, lines: tuple[bytes, ...], status: bytes
) -> None:
    with Raw(hasty, request_bytes("/", b"Expect: 100-continue", *lines)) as raw:
        assert raw.read_all().startswith(b"HTTP/1.1 " + status), (
            "and not 408, as when a body had been waited for"
        )


def test_a_refused_client_cannot_go_on_sending_for_ever(hasty: Setup) -> None:
    with Raw(hasty, request_bytes("/", b"Content-Length: 1000000000")) as raw:
        raw.send_until_cut_off(b"x" * 65536, within_s=PATIENCE_S)


def test_bodies_over_the_memory_for_all_of_them_are_429() -> None:
    config = {"queue": {"max_bytes": 1 << 20}}
    with serving(config=config) as setup, Raw(setup) as slow:
        slow.send(request_bytes("/", b"Content-Length: 900000") + b"x" * 800_000)
        until(lambda: setup.status()["queued_bytes"] == 800_000, within_s=PATIENCE_S, what="bytes held")
        reply = ask(setup, body=b"y" * 300_000)
        assert reply.status == 429
        assert int(reply.value("retry-after") or "0") >= 1
        assert reply.value("x-fal-needs-retry") == "1"
        assert reply.json()["error_type"] == "concurrent_requests_limit"
        assert "hold 800000 bytes, and queue.max_bytes allows 1048576" in reply.json()["detail"]
        with Raw(setup, request_bytes("/", b"Content-Length: 300000")) as raw:
            assert raw.read_until(b"\r\n").startswith(b"HTTP/1.1 429 "), "before a byte of it was sent"
        with Raw(setup, request_bytes("/", b"Transfer-Encoding: chunked")) as raw:
            for _ in range(10):
                raw.send(b"8000\r\n" + b"x" * 0x8000 + b"\r\n")
            assert raw.read_until(b"\r\n").startswith(b"HTTP/1.1 429 ")
        slow.send(b"x" * 100_000)
        assert slow.read_until(b"ok").startswith(b"HTTP/1.1 200 ")
        until(lambda: setup.status()["queued_bytes"] == 0, within_s=PATIENCE_S, what="bytes given back")
        assert ask(setup, body=b"y" * 300_000).status == 200
        assert setup.status()["refused"] == 3


# --- headers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent", [b"", b"\r\n", b"POST", b"POST / HTTP/1.1\r\nHost: localhost\r\nX-A: b"], ids=["silent", "crlf", "line", "header"]
)  # fmt: skip
def test_headers_that_do_not_end_in_time_end_the_connection(hasty: Setup, sent: bytes) -> None:
    started_at = monotonic_s()
    with Raw(hasty, sent) as raw:
        assert closed_at(raw) - started_at >= 0.45  # the loop counts in milliseconds


def test_a_header_a_moment_does_not_extend_the_time(hasty: Setup) -> None:
    with Raw(hasty, b"POST / HTTP/1.1\r\n") as raw:
        raw.send_until_cut_off(b"X-A: b\r\n", within_s=PATIENCE_S, pause_s=0.1)


@pytest.mark.parametrize("started", [b"PO", b"\r\n"])
def test_the_second_request_of_a_connection_has_the_same_deadline(patient: Setup, started: bytes) -> None:
    with Raw(patient, request_bytes()) as raw:
        raw.read_until(b"ok")
        started_at = monotonic_s()
        raw.send(started)
        assert closed_at(raw) - started_at >= 0.45, "an idle connection stays for an hour"


def test_an_idle_connection_is_kept_for_keep_alive(hasty: Setup, patient: Setup) -> None:
    started_at = monotonic_s()
    with Raw(hasty, request_bytes()) as raw:
        raw.read_until(b"ok")
        assert closed_at(raw) - started_at >= 0.95
    with Raw(patient, request_bytes()) as raw:
        raw.read_until(b"ok")
        threading.Event().wait(0.7)  # longer than a header may take
        raw.send(request_bytes())
        raw.read_until(b"ok")


def test_a_rest_of_a_refused_body_has_the_deadline_of_headers(hasty: Setup) -> None:
    with Raw(hasty, request_bytes("/", b"Content-Length: 9000", b"Host: evil.example")) as raw:
        closed_at(raw)


@pytest.mark.parametrize("pieces", [1, 50])
def test_headers_that_are_too_large_are_431(plain: Setup, pieces: int) -> None:
    wanted = request_bytes("/", *(b"X-%d: %s" % (i, b"v" * 900) for i in range(100)))
    size = len(wanted) // pieces + 1
    # Closing while more is on its way is a reset, which may overtake the answer.
    with Raw(plain) as raw, contextlib.suppress(ConnectionError):
        for at in range(0, len(wanted), size):
            raw.send(wanted[at : at + size])
        assert raw.read_all().startswith(b"HTTP/1.1 431 ")
    assert not plain.hosts[0].seen


def test_headers_without_an_end_are_cut_off_long_before_the_deadline(plain: Setup) -> None:
    with Raw(plain, b"POST / HTTP/1.1\r\nX-A: ") as raw:
        assert raw.send_until_cut_off(b"v" * 65536, within_s=PATIENCE_S) < 20 << 20


def test_a_body_is_not_counted_as_headers_of_the_request_behind_it(plain: Setup) -> None:
    with Raw(plain) as raw:
        for _ in range(2):
            for piece in (b"POST / HTTP/1.1\r\nHost: localhost\r\n", b"Content-Length: 400000\r\n\r\n"):
                raw.send(piece)
                threading.Event().wait(0.05)
            for _ in range(4):
                raw.send(b"x" * 100_000)
                threading.Event().wait(0.02)
            assert raw.read_until(b"ok").startswith(b"HTTP/1.1 200 ")


def test_headers_of_a_usual_large_size_pass(plain: Setup) -> None:
    assert ask(plain, headers={f"x-{i}": "v" * 900 for i in range(60)}).status == 200
    assert len([name for name, _ in plain.hosts[0].seen[-1].headers if name.startswith(b"x-")]) >= 60


@pytest.mark.parametrize(
    "begun", [b"1\r\nx\r\n0\r\nX-T: ", b"1\r\nx\r\n0\r\n", b"1;a=", b"1\r\nx\r\n1;a="],
    ids=["trailer", "trailers", "extension", "extension of a later chunk"],
)  # fmt: skip
def test_framing_without_an_end_is_431(plain: Setup, begun: bytes) -> None:
    piece = b"X-T: " + b"a" * 9000 + b"\r\n" if begun.endswith(b"0\r\n") else b"a" * 9000

    def answer() -> bytes:
        with Raw(plain, request_bytes("/", b"Transfer-Encoding: chunked") + begun) as raw:
            return answer_to_endless(raw, piece)

    # Where the router was slow to read, the reset overtakes the answer.
    assert until(answer, within_s=PATIENCE_S, what="an answer").startswith(b"HTTP/1.1 431 ")
    assert not plain.hosts[0].seen


def answer_to_endless(raw: Raw, piece: bytes) -> bytes:
    """Send *piece* again and again, and slowly, until there is an answer; nothing: cut off without one."""
    raw.socket.settimeout(0.05)
    for _ in range(1200):
        with contextlib.suppress(TimeoutError):
            try:
                return raw.socket.recv(1 << 16)
            except ConnectionError:
                return b""
        with contextlib.suppress(ConnectionError):
            raw.send(piece)
    msg = "not cut off"
    raise AssertionError(msg)


def test_headers_behind_a_request_that_is_served_have_the_same_limit(plain: Setup) -> None:
    gate = Gate()
    plain.hosts[0].handler = gate
    with Raw(plain, request_bytes() + b"POST / HTTP/1.1\r\nX-A: ") as raw:
        until(lambda: plain.hosts[0].executing, within_s=PATIENCE_S, what="executing")
        assert answer_to_endless(raw, b"v" * 9000) == b"", "it would be read as the first request's answer"
    gate.opened.set()
    until(lambda: not plain.hosts[0].executing, within_s=PATIENCE_S, what="ended")


def test_trailers_are_not_counted_as_headers_of_the_request_behind_them(plain: Setup) -> None:
    large = b"X-T: " + b"v" * 40_000
    with Raw(plain, request_bytes("/", b"Transfer-Encoding: chunked") + b"0\r\n") as raw:
        for piece in (large, b"\r\n\r\n"):
            threading.Event().wait(0.05)
            raw.send(piece)
        raw.read_until(b"ok")
        for piece in (b"POST / HTTP/1.1\r\nHost: localhost\r\n" + large, b"\r\n\r\n"):
            raw.send(piece)
            threading.Event().wait(0.05)
        assert raw.read_until(b"ok").startswith(b"HTTP/1.1 200 ")


def test_trailers_are_read_and_not_passed_on(plain: Setup) -> None:
    chunked = request_bytes("/", b"Transfer-Encoding: chunked")
    with Raw(plain, chunked) as raw:
        raw.send(b"1\r\nx\r\n0\r\nX-T: 1\r\nX-U: 1\r\n\r\n" + request_bytes("/", b"Connection: close"))
        assert raw.read_all().endswith(b"ok")
    assert [seen.body for seen in plain.hosts[0].seen] == [b"x", b""]
    for seen in plain.hosts[0].seen:
        assert seen.values("x-t") + seen.values("x-u") == []


# --- slow readers ------------------------------------------------------------------------------


def test_a_client_that_reads_nothing_is_cut_off_and_its_slot_comes_back(hasty: Setup) -> None:
    finished = threading.Event()

    async def pour(_: Seen, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _piece in range(200):
            await send({"type": "http.response.body", "body": b"z" * (1 << 18), "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        finished.set()

    hasty.hosts[0].handler = pour
    with Raw(hasty, request_bytes(), receive_bytes=4096) as raw:
        raw.read_until(b"zzzz")
        assert finished.wait(PATIENCE_S), "the rest of the answer is read from the host all the same"
        until(lambda: not hasty.hosts[0].executing, within_s=PATIENCE_S, what="slot free")
        until(lambda: hasty.hosts[0].cancelled, within_s=PATIENCE_S, what="the app told")
        closed_at(raw)
    assert hasty.router is not None
    assert "reads_too_slowly" in hasty.router.log
    assert "Traceback" not in hasty.router.log


@pytest.mark.parametrize("keep", [b"close", b"keep-alive"])
def test_a_client_that_leaves_the_last_bytes_unread_is_cut_off(keep: bytes) -> None:
    """Too few to fill a write buffer: nothing else would ever notice that they do not leave."""
    size = 60_000
    config = {"server": {"send_timeout": 0.5, "keep_alive": 0.5}}
    with serving(config=config, handler=lambda _, send: answer(send, b"z" * size)) as setup:
        setup.listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # accepted sockets inherit it
        with Raw(setup, request_bytes("/", b"Connection: " + keep), receive_bytes=4096) as raw:
            raw.read_until(b"zzzz")
            assert setup.router is not None
            pid = setup.router.process.pid
            until(lambda: connections_of(pid, setup.port) == 0, within_s=5.0, what="the router let go")
            with contextlib.suppress(ConnectionError):
                assert len(raw.read_all()) < size - 4


def connections_of(pid: int, port: int) -> int:
    """Return how many TCP connections at *port* the process has."""
    found = psutil.Process(pid).net_connections("tcp")
    return sum(c.laddr.port == port and c.status != psutil.CONN_LISTEN for c in found)


def test_a_client_that_reads_slowly_but_steadily_gets_everything(patient: Setup) -> None:
    size = 8 << 20
    patient.hosts[0].handler = lambda _, send: answer(send, b"z" * size)
    with Raw(patient, request_bytes("/", b"Connection: close"), receive_bytes=65536) as raw:
        raw.read_until(b"\r\n\r\n")
        got = 0
        while got < size:
            threading.Event().wait(0.04)
            got += len(raw.socket.recv(1 << 17))
    assert got == size
