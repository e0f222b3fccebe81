"""Websockets through the router: who gets one, what passes, and how both sides learn of its end."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jwt
import pytest
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Send
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from falctl import wire
from falctl.apikeys import hash_key
from tests.router.client import Later, Raw, ask, request_bytes
from tests.router.fake_host import PATIENCE_S, FakeHost, Seen, echo, wait_on_loop
from tests.router.harness import Setup, idle, log_of, serving, waits
from tests.wait import until

KEY = "falctl_a-key-of-this-test"


@contextmanager
def talking(setup: Setup, path: str = "/run/me/app/realtime", **options: Any) -> Iterator[ClientConnection]:
    with connect(
        f"ws://127.0.0.1:{setup.port}{path}",
        additional_headers=options.pop("headers", {}),
        open_timeout=PATIENCE_S,
        close_timeout=PATIENCE_S,
        max_size=None,
        **options,
    ) as websocket:
        yield websocket


def closed(websocket: ClientConnection) -> tuple[int | None, str | None]:
    """Return how it ends, once it does."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            websocket.recv(PATIENCE_S)
    return websocket.close_code, websocket.close_reason


def refused(setup: Setup, path: str = "/run/me/app/realtime", **headers: str) -> tuple[int, Any]:
    """Return status and body of the answer by which a handshake is refused."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with pytest.raises(InvalidStatus) as error, talking(setup, path, headers=named):
        pass
    return error.value.response.status_code, json.loads(error.value.response.body or b"null")


class Heard:
    """A talker that notes what it hears, and does what it is told."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.told: list[Message] = []
        self.go = threading.Event()

    async def __call__(self, _: Seen, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await wait_on_loop(self.go)
        for message in self.told:
            await send(message)
        while True:
            self.messages.append(await receive())
            if self.messages[-1]["type"] == "websocket.disconnect":
                return

    @property
    def end(self) -> tuple[int, str]:
        until(
            lambda: any(m["type"] == "websocket.disconnect" for m in self.messages),
            within_s=PATIENCE_S,
            what="it heard the end",
        )
        return self.messages[-1]["code"], self.messages[-1].get("reason") or ""


def with_talker(talker: Any, **options: Any) -> contextlib.AbstractContextManager[Setup]:
    return serving(talker=talker, **options)


# --- what passes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "app_path"),
    [("/run/me/app/realtime", b"/realtime"), ("/run/me/app", b"/"), ("/a%20b", b"/a%20b"), ("/", b"/")],
)
def test_messages_pass_as_they_are_and_the_app_sees_its_own_path(
    plain: Setup, path: str, app_path: bytes
) -> None:
    with talking(plain, f"{path}?max_buffering=5&x=%20") as websocket:
        for piece in ("text ü", b"\x00\xff", "", b"x" * (1 << 20)):
            websocket.send(piece)
            assert websocket.recv(PATIENCE_S) == piece
        websocket.send(iter([b"in ", b"several ", b"frames"]))
        assert websocket.recv(PATIENCE_S) == b"in several frames"
    seen = plain.hosts[0].seen[0]
    assert (seen.raw_path, seen.query) == (app_path, b"max_buffering=5&x=%20")
    idle(plain)


def test_headers_pass_both_ways_and_the_handshakes_own_do_not() -> None:
    async def chooses(seen: Seen, receive: Receive, send: Send) -> None:
        await receive()
        headers = [(b"x-app", b"yes"), (b"x-fal-runner-hints", b"m"), (b"access-control-allow-origin", b"*")]
        await send({"type": "websocket.accept", "subprotocol": "second", "headers": headers})
        await receive()

    chosen = [Subprotocol("first"), Subprotocol("second")]
    with (
        with_talker(chooses) as setup,
        talking(setup, headers={"X-Mine": "1", "X-Falctl-Y": "2"}, subprotocols=chosen) as websocket,
    ):
        assert websocket.subprotocol == "second"
        assert websocket.response is not None
        answer = websocket.response.headers
        seen = setup.hosts[0].seen[0]
        assert answer["x-app"] == "yes"
        assert answer["x-fal-runner-hints"] == "m"
        assert answer["x-falctl-runner"] == "0"
        assert answer["x-fal-request-id"] == seen.request
        assert "access-control-allow-origin" not in answer
        assert seen.values("x-mine") == [b"1"]
        assert seen.values("x-falctl-y") == []
        assert seen.values("sec-websocket-protocol") == [b"first,second"]
        assert seen.values("sec-websocket-extensions") == [], (
            "compression between two processes of one machine"
        )


def test_what_a_client_sends_before_it_is_let_in_is_not_lost() -> None:
    first = bytes([0x81, 0x82, 0, 0, 0, 0]) + b"hi"  # a masked text frame
    handshake = request_bytes("/", *UPGRADE, method="GET")
    with serving() as setup:
        with Raw(setup, handshake + first) as raw:
            assert raw.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
            assert raw.read_until(b"hi") == b"\x81\x02hi"
        with Raw(setup, request_bytes("/x", body=b"before") + handshake) as raw:
            assert raw.read_until(b"ok").startswith(b"HTTP/1.1 200 ")
            assert raw.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
            raw.send(first)
            assert raw.read_until(b"hi") == b"\x81\x02hi"


def test_a_client_that_sends_much_before_it_is_let_in_is_cut_off() -> None:
    with serving(slots=1) as setup, talking(setup):
        with Raw(setup, request_bytes("/", *UPGRADE, method="GET")) as raw:
            waits(setup, 1)
            raw.send_until_cut_off(bytes(4096), within_s=PATIENCE_S)
        waits(setup, 0)


# --- how it ends ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (4321, "gone fishing"), (1011, "ü" * 50)])
def test_the_app_hears_how_the_client_ended_it(code: int, reason: str) -> None:
    heard = Heard()
    heard.go.set()
    with with_talker(heard) as setup:
        with talking(setup) as websocket:
            websocket.close(code, reason)
        assert heard.end == (code, reason)
        idle(setup)


def test_an_end_without_a_code_has_none_for_the_app_either() -> None:
    heard = Heard()
    heard.go.set()
    with with_talker(heard) as setup:
        with Raw(setup, request_bytes("/", *UPGRADE, method="GET")) as raw:
            raw.read_until(b"\r\n\r\n")
            raw.send(bytes([0x88, 0x80, 0, 0, 0, 0]))
            assert raw.read_all()[:1] == b"\x88"
        assert heard.end == (1005, "")


def test_a_client_that_vanishes_is_told_to_the_app_and_its_request_cancelled() -> None:
    heard = Heard()
    heard.go.set()
    with with_talker(heard) as setup:
        with talking(setup) as websocket:
            websocket.socket.shutdown(socket.SHUT_RDWR)
        assert heard.end == (1001, "")
        host = setup.hosts[0]
        until(lambda: host.cancels_asked, within_s=PATIENCE_S, what="cancelled, if it still ran")
        idle(setup)


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (4001, "as you wish"), (1011, "x" * 123)])
def test_the_client_hears_how_the_app_ended_it(code: int, reason: str) -> None:
    heard = Heard()
    heard.told = [
        {"type": "websocket.send", "text": "last words"},
        {"type": "websocket.close", "code": code, "reason": reason},
    ]
    with with_talker(heard) as setup, talking(setup) as websocket:
        heard.go.set()
        assert websocket.recv(PATIENCE_S) == "last words"
        assert closed(websocket) == (code, reason)
        idle(setup)


def test_when_its_runner_is_lost_it_ends_with_1011() -> None:
    with serving() as setup, talking(setup) as websocket:
        setup.hosts[0].close()
        assert closed(websocket) == (1011, "runner 0 was lost while it worked on this request")
        assert "websocket.lost" in log_of(setup)


def test_when_the_router_stops_it_ends_with_1001() -> None:
    with serving() as setup, talking(setup) as websocket:
        assert setup.router is not None
        setup.router.send(wire.Stop())
        assert closed(websocket) == (1001, "falctl is shutting down")
        assert setup.router.process.wait(PATIENCE_S) == 0


def test_a_drain_waits_for_it() -> None:
    with serving() as setup, talking(setup) as websocket:
        assert setup.router is not None
        setup.router.send(wire.Drain(600.0))
        assert refused(setup)[0] == 503
        assert not setup.router.heard(wire.Drained, within_s=0.5)
        websocket.send("still there")
        assert websocket.recv(PATIENCE_S) == "still there"
        websocket.close()
        setup.router.expect(wire.Drained)


# --- who gets one --------------------------------------------------------------------------------

UPGRADE = (
    b"Connection: keep-alive, Upgrade",
    b"Upgrade: WebSocket",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
)


@pytest.mark.parametrize(
    ("changed", "status", "said"),
    [
        (UPGRADE[1:], 426, b"Connection"),
        ((*UPGRADE[:3], b"Sec-WebSocket-Key: eA=="), 400, b"Sec-WebSocket-Key"),
        ((*UPGRADE[:2], b"Sec-WebSocket-Version: 8", UPGRADE[3]), 400, b"Sec-WebSocket-Version"),
        (UPGRADE[:3], 400, b"Sec-WebSocket-Key"),
    ],
)
def test_a_handshake_that_is_none_is_refused_in_words(
    plain: Setup, changed: tuple[bytes, ...], status: int, said: bytes
) -> None:
    with Raw(plain, request_bytes("/realtime", *changed, b"Connection: close", method="GET")) as raw:
        answered = raw.read_all()
    assert f" {status} ".encode() in answered.splitlines()[0]
    assert said in answered
    assert not plain.hosts[0].seen


def test_a_post_is_no_handshake(plain: Setup) -> None:
    with Raw(plain, request_bytes("/realtime", *UPGRADE, body=b"{}")) as raw:
        assert raw.read_all().startswith(b"HTTP/1.1 400 ")
    assert not plain.hosts[0].seen


def test_a_page_of_another_origin_gets_none() -> None:
    with serving(config={"server": {"allow_origins": ["https://good.example"]}}) as setup:
        status, body = refused(setup, Origin="https://evil.example")
        assert (status, body["error_type"]) == (403, "forbidden")
        assert refused(setup, Host="evil.example")[0] == 421
        assert not setup.hosts[0].seen
        for origin in ("https://good.example", f"http://127.0.0.1:{setup.port}"):
            with talking(setup, headers={"Origin": origin}) as websocket:
                websocket.send("x")
                assert websocket.recv(PATIENCE_S) == "x"


def token(setup: Setup, apps: list[str] | None = None, seconds: int = 120, **headers: str) -> str:
    wish = json.dumps({"allowed_apps": apps or ["app"], "token_expiration": seconds}).encode()
    reply = ask(setup, "POST", "/fal/rest/tokens/", body=wish, headers=headers)
    assert reply.status == 200, reply.body
    made: str = reply.json()
    return made


def test_with_keys_configured_a_key_or_a_token_opens_it() -> None:
    path = "/run/me/app/realtime"
    with serving(config={"server": {"api_keys": [hash_key(KEY)]}}) as setup:
        assert refused(setup)[0] == 401
        assert ask(setup, "POST", "/fal/rest/tokens/", body=b"{}").status == 401
        with talking(setup, headers={"Authorization": f"Key {KEY}"}):
            assert setup.hosts[0].seen[-1].values("authorization") == []
        made = token(setup, Authorization=f"Key {KEY}")
        with talking(setup, f"{path}?a=1&fal_jwt_token={made}&max_buffering=3"):
            assert setup.hosts[0].seen[-1].query == b"a=1&max_buffering=3"
        assert ask(setup, "POST", f"/run/me/app/x?fal_jwt_token={made}").status == 200
        # It opens what it is for, and nothing else.
        assert ask(setup, "POST", f"/run/me/other/x?fal_jwt_token={made}").status == 401
        assert ask(setup, "POST", f"/x?fal_jwt_token={made}").status == 401
        assert ask(setup, "GET", f"/falctl/status?fal_jwt_token={made}").status == 401
        assert ask(setup, "POST", f"/fal/rest/tokens/?fal_jwt_token={made}", body=b"{}").status == 401


def test_a_token_is_checked_also_where_none_is_asked_for() -> None:
    path = "/run/me/app/realtime"
    with serving() as setup:
        secret = setup.home.token_secret
        assert secret.stat().st_mode & 0o777 == 0o600
        old = jwt.encode({"allowed_apps": ["app"], "exp": 1_000_000}, secret.read_bytes(), "HS256")
        eternal = jwt.encode({"allowed_apps": ["app"]}, secret.read_bytes(), "HS256")
        foreign = jwt.encode({"allowed_apps": ["app"], "exp": 1 << 40}, bytes(32), "HS256")
        unsigned = jwt.encode({"allowed_apps": ["app"], "exp": 1 << 40}, None, "none")  # type: ignore[arg-type]
        for bad, said in [
            (old, "has expired"),
            (eternal, "not one of this falctl"),
            (foreign, "not one of this falctl"),
            (unsigned, "not one of this falctl"),
            ("x", "not one of this falctl"),
            (token(setup, ["other"]), "is for other, not for app"),
        ]:
            status, body = refused(setup, f"{path}?fal_jwt_token={bad}")
            assert (status, said in body["detail"]) == (401, True), body
        made = token(setup, ["me/app"])
        setup.start_router()  # a later router takes the tokens of the one before
        with talking(setup, f"{path}?fal_jwt_token={made}"):
            pass


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"x", "the body"),
        (b"{}", "allowed_apps"),
        (b'{"allowed_apps": []}', "allowed_apps"),
        (b'{"allowed_apps": ["a"], "token_expiration": 1e9}', "token_expiration"),
        (b'{"allowed_apps": ["a"], "token_expiration": 0}', "token_expiration"),
    ],
)
def test_a_wish_for_a_token_that_cannot_be_is_refused(plain: Setup, body: bytes, said: str) -> None:
    reply = ask(plain, "POST", "/fal/rest/tokens/", body=body)
    assert reply.status == 400
    assert said in reply.json()["detail"]
    assert ask(plain, "GET", "/fal/rest/tokens/").status == 400


# --- it is a request like any other --------------------------------------------------------------


def test_it_waits_for_a_slot_and_holds_it() -> None:
    with serving() as setup:
        later = Later()
        with talking(setup) as first:
            later.ask(setup)
            waits(setup, 1)
            first.close()
        assert [reply.status for reply in later.all()] == [200]
        idle(setup)


def test_its_handshake_is_answered_when_it_starts() -> None:
    opened: list[str] = []

    def open_another(setup: Setup) -> None:
        with talking(setup) as websocket:
            websocket.send("in")
            opened.append(str(websocket.recv(PATIENCE_S)))

    with serving() as setup:
        with talking(setup):
            second = threading.Thread(target=open_another, args=(setup,))
            second.start()
            waits(setup, 1)
            assert not opened
        second.join(PATIENCE_S)
        assert opened == ["in"]


def test_a_client_that_leaves_while_it_waits_is_forgotten() -> None:
    with serving() as setup, talking(setup):
        with Raw(setup, request_bytes("/", *UPGRADE, method="GET")):
            waits(setup, 1)
        waits(setup, 0)
        assert len(setup.hosts[0].seen) == 1


def test_what_does_not_start_in_time_is_an_answer() -> None:
    with serving(config={"queue": {"max": 1}}) as setup, talking(setup):
        status, body = refused(setup, X_Fal_Request_Timeout="0.2")
        assert (status, body["error_type"]) == (504, "request_timeout")
        with Raw(setup, request_bytes("/", *UPGRADE, method="GET")):
            waits(setup, 1)
            assert refused(setup)[0] == 429


def test_what_the_app_refuses_is_its_answer() -> None:
    async def refuses(seen: Seen, receive: Receive, send: Send) -> None:
        response = JSONResponse({"detail": "not you"}, 418, {"x-app": "yes"})
        await response({"type": "websocket"}, receive, send)

    with with_talker(refuses) as setup:
        assert refused(setup) == (418, {"detail": "not you"})
        idle(setup)


def test_what_is_bounced_goes_elsewhere() -> None:
    with serving(runners=2) as setup:
        for host in setup.hosts.values():
            host.bounces = 1
        with talking(setup) as websocket:
            websocket.send("x")
            assert websocket.recv(PATIENCE_S) == "x"
        idle(setup)


@pytest.mark.parametrize("how", ["header", "query"])
def test_its_hint_finds_the_runner_that_is_warm(how: str) -> None:
    with serving(runners=3, slots=2) as setup:
        setup.hosts[2].set_hints("a model/ü")
        until(
            lambda: setup.status()["runners"][2]["hints"] == ["a model/ü"], within_s=PATIENCE_S, what="known"
        )
        query = "?x=1&fal_runner_hint=a+model%2F%C3%BC" if how == "query" else "?x=1"
        for _ in range(4):
            headers = {"X-Fal-Runner-Hint": "a model/ü"} if how == "header" else {}
            if how == "header":
                with Raw(
                    setup,
                    request_bytes(
                        f"/{query}", *UPGRADE, "X-Fal-Runner-Hint: a model/ü".encode("latin-1"), method="GET"
                    ),
                ) as raw:
                    assert b"x-falctl-runner: 2\r\n" in raw.read_until(b"\r\n\r\n")
            else:
                with talking(setup, f"/{query}", headers=headers) as websocket:
                    assert websocket.response is not None
                    assert websocket.response.headers["x-falctl-runner"] == "2"
            idle(setup)
        assert {seen.query for seen in setup.hosts[2].seen} == {b"x=1"}


# --- limits --------------------------------------------------------------------------------------


def test_a_message_over_max_body_ends_it_with_1009() -> None:
    with serving(config={"server": {"max_body": "1MB"}}) as setup, talking(setup) as websocket:
        websocket.send(b"x" * 1_000_000)
        assert len(websocket.recv(PATIENCE_S)) == 1_000_000
        websocket.send(b"x" * 2_000_000)
        assert closed(websocket)[0] == 1009
        idle(setup)


def test_text_that_is_none_ends_it_with_1007_and_leaves_no_traceback_in_the_log() -> None:
    with serving() as setup:
        with Raw(setup, request_bytes("/", *UPGRADE, method="GET")) as raw:
            raw.read_until(b"\r\n\r\n")
            raw.send(b"\x81\x82\0\0\0\0\xff\xfe")
            assert raw.read_all()[2:4] == (1007).to_bytes(2, "big")
        idle(setup)
        assert "Traceback" not in log_of(setup), log_of(setup)


def test_what_a_client_does_not_read_is_not_kept_and_it_is_cut_off() -> None:
    sent = 0

    async def floods(_: Seen, receive: Receive, send: Send) -> None:
        nonlocal sent
        await receive()
        await send({"type": "websocket.accept"})
        while sent < 200:
            await send({"type": "websocket.send", "bytes": bytes(1 << 20)})
            sent += 1

    with with_talker(floods, config={"server": {"send_timeout": "1s"}}) as setup:
        with Raw(setup, request_bytes("/", *UPGRADE, method="GET"), receive_bytes=4096) as raw:
            raw.read_until(b"\r\n\r\n")
            idle(setup)
        assert sent < 100
        assert "reason=reads_too_slowly" in log_of(setup)


def flood(websocket: ClientConnection) -> None:
    for _ in range(300):
        websocket.send(bytes(1 << 20))


def test_what_an_app_does_not_read_stays_with_the_client() -> None:
    heard = Heard()
    with with_talker(heard) as setup, talking(setup) as websocket:
        websocket.socket.settimeout(2.0)
        with pytest.raises((TimeoutError, ConnectionClosed)):
            flood(websocket)
        heard.go.set()


def test_hosts_own_paths_are_not_reached(plain: Setup) -> None:
    for path in ("/falctl/events", "/run/me/app/falctl/events", "/run/me/app/%66alctl/events"):
        with pytest.raises(InvalidStatus), talking(plain, path):
            pass
    assert not plain.hosts[0].seen


def test_a_host_stays_in_step_after_many(plain: Setup) -> None:
    host: FakeHost = plain.hosts[0]
    host.talker = echo
    for _ in range(20):
        with talking(plain) as websocket:
            websocket.send("x")
            assert websocket.recv(PATIENCE_S) == "x"
    idle(plain)
    assert len(host.seen) == 20
    assert "stream.resync" not in log_of(plain)
