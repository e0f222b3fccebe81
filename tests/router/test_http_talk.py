"""HTTP over a websocket: requests as messages, and their answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.types import Send
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from falctl import wire
from tests.router.client import Raw, ask, request_bytes
from tests.router.fake_host import PATIENCE_S, Gate, Seen, answer
from tests.router.harness import Setup, idle, serving, waits
from tests.wait import until

PATH = "/ws/me/app/deep/path"


def talking(setup: Setup, path: str = PATH, headers: dict[str, str] | None = None) -> ClientConnection:
    address = f"ws://127.0.0.1:{setup.port}{path}"
    return connect(
        address, additional_headers=headers or {}, open_timeout=PATIENCE_S, close_timeout=PATIENCE_S
    )


def received(websocket: ClientConnection) -> tuple[dict[str, Any], list[str | bytes], dict[str, Any]]:
    """Return the messages before, of and after an answer."""
    start = json.loads(websocket.recv(PATIENCE_S))
    parts: list[str | bytes] = []
    while True:
        part = websocket.recv(PATIENCE_S)
        if isinstance(part, str) and part.startswith('{"type": "end"'):
            return start, parts, json.loads(part)
        parts.append(part)


def test_a_message_is_a_request_and_its_answer_follows() -> None:
    async def says(seen: Seen, send: Send) -> None:
        kind = b"application/json" if seen.body == b"json" else b"image/png"
        await answer(send, seen.body, headers=((b"content-type", kind), (b"x-app", b"yes")))

    with serving(handler=says) as setup, talking(setup, headers={"X-Mine": "1"}) as websocket:
        for body, parts in (("json", ["json"]), ("png", [b"png"])):
            websocket.send(body)
            start, got, end = received(websocket)
            seen = setup.hosts[0].seen[-1]
            assert (start["type"], start["status"], start["headers"]["x-app"]) == ("start", 200, "yes")
            assert start["request_id"] == end["request_id"] == seen.request
            assert got == parts
            assert (end["status"], end["time_to_first_byte_seconds"] >= 0) == (200, True)
            assert (seen.method, seen.raw_path, seen.values("x-mine")) == ("POST", b"/deep/path", [b"1"])
            assert not [name for name, _ in seen.headers if name.startswith((b"sec-", b"upgrade"))]
        idle(setup)  # while the websocket goes on


def test_text_is_passed_on_as_it_comes_and_whole_characters_at_a_time() -> None:
    async def streams(_: Seen, send: Send) -> None:
        head = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
        await send(head)
        for chunk in ("ü".encode()[:1], "ü".encode()[1:], b" and on"):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    with serving(handler=streams) as setup, talking(setup) as websocket:
        websocket.send("{}")
        parts = received(websocket)[1]
        assert "".join(map(str, parts)) == "ü and on"


def test_an_error_is_an_answer_and_the_next_request_goes_on() -> None:
    gate = Gate()
    with (
        serving(handler=gate, config={"queue": {"max": 1}}) as setup,
        talking(setup) as busy,
        talking(setup) as waiting,
        talking(setup) as websocket,
    ):
        busy.send("{}")
        until(lambda: setup.hosts[0].executing, within_s=PATIENCE_S, what="it runs")
        waiting.send("{}")
        waits(setup, 1)
        websocket.send("{}")
        start, parts, end = received(websocket)
        assert (start["status"], end["status"]) == (429, 429)
        assert "queue.max" in json.loads(str(parts[0]))["detail"]
        gate.opened.set()
        assert received(busy)[0]["status"] == received(waiting)[0]["status"] == 200
        websocket.send("{}")
        assert received(websocket)[0]["status"] == 200


def test_a_client_that_leaves_is_forgotten() -> None:
    gate = Gate()
    with serving(handler=gate) as setup:
        with talking(setup) as running, talking(setup) as waiting:
            running.send("{}")
            until(lambda: setup.hosts[0].executing, within_s=PATIENCE_S, what="it runs")
            waiting.send("{}")
            waits(setup, 1)
            waiting.close()
            waits(setup, 0)
        host = setup.hosts[0]
        until(lambda: host.cancelled == [host.seen[0].request], within_s=PATIENCE_S, what="cancelled")
        gate.opened.set()
        idle(setup)
        assert len(host.seen) == 1


def test_an_answer_that_breaks_ends_it() -> None:
    async def breaks(_: Seen, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise ConnectionError

    with serving(handler=breaks) as setup, talking(setup) as websocket:
        websocket.send("{}")
        with pytest.raises(ConnectionClosed):
            received(websocket)
        assert (websocket.close_code, websocket.close_reason) == (1011, "the app's answer broke off")


def test_it_is_a_websocket_of_an_app_or_an_answer(plain: Setup) -> None:
    assert ask(plain, "POST", PATH).status == 400
    keyless = (b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13")
    with Raw(plain, request_bytes(PATH, *keyless, method="GET")) as raw:
        assert b"Sec-WebSocket-Key" in raw.read_until(b"}")
    with pytest.raises(InvalidStatus) as refused:
        talking(plain, "/ws/me")
    assert refused.value.response.status_code == 404
    with pytest.raises(InvalidStatus):
        talking(plain, headers={"Origin": "https://evil.example"})
    assert not plain.hosts[0].seen


def test_when_the_router_stops_it_ends_with_1001() -> None:
    with serving() as setup, talking(setup) as websocket:
        assert setup.router is not None
        setup.router.send(wire.Stop())
        with pytest.raises(ConnectionClosed):
            websocket.recv(PATIENCE_S)
        assert websocket.close_code == 1001
        assert setup.router.process.wait(PATIENCE_S) == 0
