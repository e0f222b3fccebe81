"""What crosses the router, and that it is the same on the other side."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from typing import Any

import aiohttp
import pytest
from starlette.types import Send

from falctl import wire
from tests.router.client import Raw, ask, request_bytes
from tests.router.fake_host import PATIENCE_S, Seen, answer, wait_on_loop
from tests.router.harness import Setup, serving
from tests.wait import until

LONG_HINTS = ",".join(f"organisation-{i:04}/a-model-with-a-long-name-{i:04}" for i in range(1000)).encode()


def test_an_answer_bears_its_receipt(plain: Setup) -> None:
    timings = (wire.H_TIMINGS.encode(), b"cache=disk;load_s=1.500000;exec_s=0.250000")
    hints = (wire.H_HINTS.encode(), b"m,n")
    plain.hosts[0].handler = lambda _, send: answer(send, headers=(timings, hints))
    reply = ask(plain)
    assert reply.value("x-fal-request-id") == plain.hosts[0].seen[-1].request
    assert reply.values("x-falctl-runner") == ["0"]
    assert reply.values("x-falctl-origin") == ["app"]
    assert reply.values("x-falctl-cache") == ["disk"]
    assert reply.values("x-fal-runner-hints") == ["m,n"]
    queue, load, ran = (reply.value("server-timing") or "").split(", ")
    assert queue.startswith("queue;dur=")
    assert (load, ran) == ('load;dur=1500.000;desc="disk"', "exec;dur=250.000")
    assert reply.values(wire.H_TIMINGS) == []


def test_a_stream_bears_what_is_known_when_its_headers_leave(plain: Setup) -> None:
    plain.hosts[0].handler = lambda _, send: stream(send, [b"a", b"b"])
    reply = ask(plain)
    assert reply.body == b"ab"
    assert (reply.value("server-timing") or "").startswith("queue;dur=")
    assert "exec" not in (reply.value("server-timing") or "")
    assert reply.values("x-falctl-cache") == []
    assert reply.values("transfer-encoding") == ["chunked"]


@pytest.mark.parametrize("value", [b"", b"=", b"cache=maybe;load_s=x;exec_s", b"\xff"])
def test_timings_that_make_no_sense_are_left_out(plain: Setup, value: bytes) -> None:
    plain.hosts[0].handler = lambda _, send: answer(send, headers=((wire.H_TIMINGS.encode(), value),))
    reply = ask(plain)
    assert reply.status == 200
    assert reply.values("x-falctl-cache") == []


def test_how_long_models_may_idle_is_told_to_the_runner_and_checked_before(plain: Setup) -> None:
    for path in ("/", "/queue/me/app"):
        ask(plain, path=path, body=b"{}", headers={"X-Falctl-Keep-Alive": "10m"})
    until(lambda: len(plain.hosts[0].seen) == 2, within_s=PATIENCE_S, what="both have run")
    assert [seen.values("x-falctl-keep-alive") for seen in plain.hosts[0].seen] == [[b"10m"]] * 2
    for nonsense in ("soon", "9999d", "10q", "nan"):
        reply = ask(plain, headers={"X-Falctl-Keep-Alive": nonsense})
        assert reply.status == 400
        assert b"write 0, up to" in reply.body


def test_each_request_gets_an_id_of_ours_whatever_the_client_or_the_app_says(plain: Setup) -> None:
    theirs = ((b"x-fal-request-id", b"of-the-app"),)
    plain.hosts[0].handler = lambda _, send: answer(send, headers=theirs)
    first = ask(plain, headers={"x-fal-request-id": "mine"})
    second = ask(plain, headers={"x-fal-request-id": "mine"})
    assert first.values("x-fal-request-id") != second.values("x-fal-request-id")
    for reply, seen in zip((first, second), plain.hosts[0].seen, strict=True):
        assert reply.values("x-fal-request-id") == [seen.request]
        assert seen.values("x-fal-request-id") == [seen.request.encode()]


def test_internal_headers_pass_in_neither_direction(plain: Setup) -> None:
    internal = ((b"X-Falctl-Secret", b"1"), (b"x-fal-stop-runner", b"true"), (b"x-falctl-origin", b"router"))
    plain.hosts[0].handler = lambda _, send: answer(send, headers=internal)
    reply = ask(plain, headers={"X-Falctl-Hint": '"forged"', "x-falctl-headers": '[["host", "evil"]]'})
    names = {name.decode() for name, _ in plain.hosts[0].seen[-1].headers}
    assert not [name for name in names if name.startswith("x-falctl-")]
    assert reply.values("x-falctl-secret") == reply.values("x-fal-stop-runner") == []
    assert reply.values("x-falctl-origin") == ["app"]


def test_headers_of_one_connection_pass_in_neither_direction(plain: Setup) -> None:
    hop = (
        (b"Connection", b"X-Private"),
        (b"X-Private", b"1"),
        (b"Keep-Alive", b"timeout=5"),
        (b"X-Public", b"2"),
    )
    plain.hosts[0].handler = lambda _, send: answer(send, headers=hop)
    sent = {"Connection": "keep-alive, x-mine", "x-mine": "1", "te": "trailers", "proxy-authorization": "x"}
    reply = ask(plain, headers={**sent, "x-other": "2"})
    seen = plain.hosts[0].seen[-1]
    assert [seen.values(name) for name in ("connection", "x-mine", "te", "proxy-authorization")] == [[]] * 4
    assert seen.values("x-other") == [b"2"]
    assert reply.values("x-private") == reply.values("keep-alive") == []
    assert reply.values("x-public") == ["2"]


def test_the_app_gets_the_client_s_headers_and_none_that_it_did_not_send(plain: Setup) -> None:
    with Raw(
        plain, request_bytes("/", b"X-Twice: a", b"X-Twice: b", b"Connection: close", body=b"[]")
    ) as raw:
        raw.read_all()
    headers = sorted(plain.hosts[0].seen[-1].headers)
    assert [name for name, _ in headers] == [
        b"content-length",
        b"host",
        b"x-fal-request-id",
        b"x-twice",
        b"x-twice",
    ]
    assert plain.hosts[0].seen[-1].values("x-twice") == [b"a", b"b"]
    assert plain.hosts[0].seen[-1].values("host") == [b"localhost"]


def test_bytes_above_ascii_reach_the_app_by_way_of_the_json_header(plain: Setup) -> None:
    with Raw(
        plain, request_bytes("/", b"X-Fal-Runner-Hint: caf\xe9", b"X-A: \xc3\xa9", b"Connection: close")
    ) as raw:
        raw.read_all()
    seen = plain.hosts[0].seen[-1]
    assert seen.values("x-fal-runner-hint") == []
    (raw_headers,) = seen.values(wire.H_RAW)
    assert json.loads(raw_headers) == [["x-fal-runner-hint", "caf\xe9"], ["x-a", "\xc3\xa9"]]
    assert raw_headers.isascii()


def test_bytes_above_ascii_reach_the_client_as_they_were(plain: Setup) -> None:
    plain.hosts[0].handler = lambda _, send: answer(
        send, headers=((b"X-Fal-Runner-Hints", b"caf\xe9,\xc3\xa9"),)
    )
    with Raw(plain, request_bytes("/", b"Connection: close")) as raw:
        assert b"x-fal-runner-hints: caf\xe9,\xc3\xa9\r\n" in raw.read_all()


def test_a_hint_in_the_header_reaches_the_app_byte_for_byte_and_alone(plain: Setup) -> None:
    headers = {"x-fal-runner-hint": "  a=b; c/d ", "content-type": "application/json"}
    ask(plain, body=b'{"model": "other"}', headers=headers)
    seen = plain.hosts[0].seen[-1]
    assert seen.values("x-fal-runner-hint") == [b"a=b; c/d"]
    assert seen.values(wire.H_WANTED) == []


def test_a_hint_in_the_body_reaches_the_host_as_json(plain: Setup) -> None:
    ask(plain, body='{"model": "é\\ud800\\n"}'.encode(), headers={"content-type": "application/json"})
    assert plain.hosts[0].seen[-1].values(wire.H_WANTED) == [b'"\\u00e9\\ud800\\n"']


@pytest.mark.parametrize("declared", [{}, {"content-type": "application/x-www-form-urlencoded"}])
def test_an_object_that_curl_d_calls_a_form_reaches_the_app_as_the_json_that_it_is(
    plain: Setup, declared: dict[str, str]
) -> None:
    ask(plain, body=b' \n{"model": "m1"}', headers=declared)
    seen = plain.hosts[0].seen[-1]
    assert seen.values("content-type") == [b"application/json"]
    assert seen.values(wire.H_WANTED) == [b'"m1"']


@pytest.mark.parametrize("body", [b"a=1&b=2", b"", b"[1]"])
def test_a_real_form_stays_one(plain: Setup, body: bytes) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    ask(plain, body=body, headers=form)
    assert plain.hosts[0].seen[-1].values("content-type") == [form["content-type"].encode()]


def test_a_thousand_long_hints_in_one_header_pass(plain: Setup) -> None:
    assert len(LONG_HINTS) > 40_000
    plain.hosts[0].handler = lambda _, send: answer(send, headers=((b"x-fal-runner-hints", LONG_HINTS),))
    with Raw(plain, request_bytes("/", b"Connection: close")) as raw:
        assert b"x-fal-runner-hints: " + LONG_HINTS + b"\r\n" in raw.read_all()


def test_two_hundred_headers_of_an_app_pass(plain: Setup) -> None:
    many = tuple((b"x-%d" % i, b"v") for i in range(200))
    plain.hosts[0].handler = lambda _, send: answer(send, headers=many)
    with Raw(plain, request_bytes("/", b"Connection: close")) as raw:
        assert raw.read_all().count(b": v\r\n") == 200


def test_a_compressed_body_passes_untouched_both_ways(plain: Setup) -> None:
    body = gzip.compress(b'{"model": "m"}' * 100)
    encoded = ((b"content-encoding", b"gzip"),)

    async def echo(seen: Seen, send: Send) -> None:
        await answer(send, seen.body, headers=encoded)

    plain.hosts[0].handler = echo
    reply = ask(plain, body=body, headers={"content-encoding": "gzip", "content-type": "application/json"})
    assert plain.hosts[0].seen[-1].body == body == reply.body
    assert plain.hosts[0].seen[-1].values("content-encoding") == [b"gzip"]
    assert reply.value("content-length") == str(len(body))


@pytest.mark.parametrize("size", [0, 1, 65_536, 5 << 20])
def test_bodies_of_any_size_pass_both_ways(plain: Setup, size: int) -> None:
    async def echo(seen: Seen, send: Send) -> None:
        await answer(send, seen.body)

    plain.hosts[0].handler = echo
    body = bytes(i % 251 for i in range(min(size, 5000))) * (size // min(max(size, 1), 5000) or 0)
    assert ask(plain, body=body).body == body


def test_large_bodies_are_written_without_a_warning(plain: Setup) -> None:
    ask(plain, body=b"x" * (3 << 20))
    assert plain.router is not None
    assert "ResourceWarning" not in plain.router.log


def test_head_has_a_length_and_no_body(plain: Setup) -> None:
    plain.hosts[0].handler = lambda _, send: answer(send, b"12345")
    with Raw(plain, request_bytes("/x", method="HEAD")) as raw:
        head = raw.read_until(b"\r\n\r\n")
        assert b"content-length: 5\r\n" in head
        raw.send(request_bytes("/y"))
        assert raw.read_until(b"12345").startswith(b"HTTP/1.1 200 "), "nothing lay between the two answers"


@pytest.mark.parametrize(("status", "length"), [(204, b"0"), (304, b"0"), (304, b"5")])
def test_an_answer_without_a_body_ends_with_its_headers(plain: Setup, status: int, length: bytes) -> None:
    async def bare(_: Seen, send: Send) -> None:
        headers = b'etag: "x"\r\n' + (b"content-length: 5\r\n" if length == b"5" else b"")
        cycle = send.__self__  # type: ignore[attr-defined]
        # A server library would insist on a body of the promised length, which must not follow such a head.
        cycle.transport.write(f"HTTP/1.1 {status} Whatever\r\n".encode() + headers + b"\r\n")
        cycle.response_started = cycle.response_complete = True
        cycle.on_response()

    plain.hosts[0].handler = bare
    with Raw(plain, request_bytes("/x", method="GET")) as raw:
        head = raw.read_until(b"\r\n\r\n")
        assert head.startswith(f"HTTP/1.1 {status} ".encode())
        assert b"transfer-encoding" not in head
        assert b"content-length" not in head
        plain.hosts[0].handler = lambda _, send: answer(send)
        raw.send(request_bytes("/y"))
        assert raw.read_until(b"ok").startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("status", [201, 301, 307, 404, 422, 429, 500, 503])
def test_an_app_s_status_is_passed_on_and_not_acted_upon(plain: Setup, status: int) -> None:
    plain.hosts[0].handler = lambda _, send: answer(
        send, b"said", status=status, headers=((b"location", b"/else"),)
    )
    reply = ask(plain)
    assert (reply.status, reply.body, reply.value("location")) == (status, b"said", "/else")
    assert len(plain.hosts[0].seen) == 1


def test_cookies_are_the_client_s_business(plain: Setup) -> None:
    plain.hosts[0].handler = lambda _, send: answer(
        send, headers=((b"set-cookie", b"a=1"), (b"set-cookie", b"b=2"))
    )
    assert ask(plain).values("set-cookie") == ["a=1", "b=2"]
    ask(plain, headers={"cookie": "mine=1"})
    ask(plain)
    assert [seen.values("cookie") for seen in plain.hosts[0].seen] == [[], [b"mine=1"], []]


@pytest.mark.parametrize(
    "target", ["//double", "/a%2Fb/%C3%A9", "/a/../b", "/x?q=%zz&y=a+b", "/x?", "/;p?a=[1]"]
)
def test_the_target_reaches_the_app_as_it_was_written(plain: Setup, target: str) -> None:
    with Raw(plain, request_bytes(target, b"Connection: close")) as raw:
        raw.read_all()
    seen = plain.hosts[0].seen[-1]
    path, _, query = target.encode().partition(b"?")
    assert (seen.raw_path, seen.query) == (path, query)


def test_docs_and_openapi_need_no_slot(plain: Setup) -> None:
    release = threading.Event()
    plain.hosts[0].handler = lambda seen, send: (
        until_set(release, send) if seen.raw_path == b"/" else answer(send)
    )
    held = Raw(plain, request_bytes())
    until(lambda: plain.hosts[0].executing, within_s=PATIENCE_S, what="slot taken")
    for path in ("/docs", "/openapi.json"):
        reply = ask(plain, "GET", path)
        assert (reply.status, reply.body, reply.value("x-falctl-origin")) == (200, b"ok", "app")
    release.set()
    held.read_until(b"done")
    held.close()


def test_chunks_leave_one_by_one_as_they_come(plain: Setup) -> None:
    go_on = [threading.Event() for _ in range(3)]

    async def steps(_: Seen, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for i, step in enumerate(go_on):
            await send({"type": "http.response.body", "body": b"chunk%d" % i, "more_body": True})
            await asyncio.to_thread(step.wait, PATIENCE_S)
        await send({"type": "http.response.body", "body": b""})

    plain.hosts[0].handler = steps
    with Raw(plain, request_bytes()) as raw:
        for i, step in enumerate(go_on):
            raw.read_until(b"chunk%d\r\n" % i)
            step.set()
        assert raw.read_until(b"0\r\n\r\n") == b"0\r\n\r\n"


def test_headers_of_a_stream_leave_before_its_first_chunk(plain: Setup) -> None:
    go_on = threading.Event()

    async def late(_: Seen, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"text/event-stream")],
            }
        )
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        await asyncio.to_thread(go_on.wait, PATIENCE_S)
        await send({"type": "http.response.body", "body": b"late"})

    plain.hosts[0].handler = late
    with Raw(plain, request_bytes()) as raw:
        assert b"text/event-stream" in raw.read_until(b"\r\n\r\n")
        go_on.set()
        raw.read_until(b"late")


def test_300_streams_run_at_the_same_time() -> None:
    count = 300
    everyone_is_in = threading.Event()

    async def steps(_: Seen, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"in", "more_body": True})
        await wait_on_loop(everyone_is_in)
        await send({"type": "http.response.body", "body": b"out"})

    async def read(session: aiohttp.ClientSession, url: str, entered: list[int]) -> bytes:
        async with session.post(url) as response:
            first = await response.content.readexactly(2)
            entered.append(1)
            if len(entered) == count:
                everyone_is_in.set()
            return first + await response.read()

    async def read_all(url: str) -> list[bytes]:
        connector = aiohttp.TCPConnector(limit=0)
        entered: list[int] = []
        async with aiohttp.ClientSession(connector=connector) as session, asyncio.timeout(60):
            return await asyncio.gather(*(read(session, url, entered) for _ in range(count)))

    with serving(slots=count, handler=steps) as setup:
        assert asyncio.run(read_all(f"http://127.0.0.1:{setup.port}/")) == [b"inout"] * count


def test_no_limit_of_the_edge_cuts_a_job_that_runs_longer() -> None:
    server = dict.fromkeys(("header_timeout", "body_timeout", "send_timeout", "keep_alive"), 1.0)
    config = {"server": server, "routing": {"hold": 0, "bypass_max": 0}}

    async def long_job(seen: Seen, send: Send) -> None:
        await asyncio.sleep(3.0)
        if seen.raw_path == b"/stream":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
            await asyncio.sleep(3.0)
            await send({"type": "http.response.body", "body": b"done"})
        else:
            await answer(send, b"done")

    with serving(config=config, handler=long_job, slots=2) as setup:
        replies: list[Any] = []
        threads = [
            threading.Thread(target=lambda p=path: replies.append(ask(setup, path=p)))
            for path in ("/", "/stream")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert sorted(reply.body for reply in replies) == [b"begundone", b"done"]


async def until_set(event: threading.Event, send: Send) -> None:
    await wait_on_loop(event)
    await answer(send, b"done")


async def stream(send: Send, chunks: list[bytes]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for chunk in chunks:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
