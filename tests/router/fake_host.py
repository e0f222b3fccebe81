"""A host that does as it is told, on a Unix socket, from a thread of the test."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from falctl import wire
from falctl.board.board import Board
from falctl.board.rows import ModelRow, RunnerRow
from falctl.core.types import Epoch, Hint

PATIENCE_S = 60.0


@dataclass(frozen=True)
class Seen:
    """A request as it reached a host."""

    method: str
    raw_path: bytes
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def values(self, name: str) -> list[bytes]:
        return [value for key, value in self.headers if key == name.encode()]

    @property
    def request(self) -> str:
        return self.values(wire.H_REQUEST_ID)[0].decode()


Handler = Callable[[Seen, Send], Awaitable[None]]
Talker = Callable[[Seen, Receive, Send], Awaitable[None]]
"""Serves a websocket."""


async def answer(
    send: Send, body: bytes = b"ok", *, status: int = 200, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
    """Send a whole answer with its length."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": body})


async def wait_on_loop(event: threading.Event) -> None:
    """Wait for what another thread sets, without holding a thread: hundreds of requests may wait."""
    async with asyncio.timeout(600):
        while not event.is_set():  # noqa: ASYNC110 - the event is a thread's, not the loop's
            await asyncio.sleep(0.01)


async def say_ok(_: Seen, send: Send) -> None:
    await answer(send)


async def echo(_: Seen, receive: Receive, send: Send) -> None:
    """Accept a websocket, and say back what is said."""
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


@dataclass(eq=False)
class FakeHost:
    """Speaks the host's side of `wire` on a Unix socket, from a thread of the test."""

    runner: int
    epoch: int
    path: Path
    board_fd: int
    slots: int = 1
    hints: tuple[str, ...] | None = ()
    handler: Handler = say_ok
    talker: Talker = echo
    bounces: int = 0
    """How many of the next requests are bounced."""
    executing: list[str] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    cancels_asked: int = 0
    """Those included that came before their request."""
    previewed: list[str] = field(default_factory=list)
    """Requests that it was asked to make pictures of."""
    door: threading.Event | None = None
    """Requests stand before it, still without a slot, until it is set."""
    at_door: int = 0
    """How many requests have come to it so far."""
    connections_made: int = 0
    streams_opened: int = 0
    tells_release: bool = True
    recap: list[wire.Message] = field(default_factory=list)
    """What it tells again after its Hello."""
    streams_refused: int = 0
    """How many of the next event streams are refused."""
    models: tuple[ModelRow, ...] = ()
    """Of its row."""
    ordered: list[dict[str, Any]] = field(default_factory=list)
    """The load jobs that it has taken; their ends are told by the test."""
    declares: dict[str, Any] = field(default_factory=dict)
    """Further fields of its Hello."""

    def __post_init__(self) -> None:
        self._board = Board.attach(self.board_fd)
        self._streams: set[asyncio.Queue[bytes | None]] = set()
        self._state = ServerState()
        self.loop = asyncio.new_event_loop()
        self.put_row()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(ready,), name="fake host", daemon=True)
        self._thread.start()
        assert ready.wait(PATIENCE_S)

    def call(self, function: Callable[[], object]) -> None:
        """Run *function* on the host's loop and wait for it."""
        done = threading.Event()

        def run() -> None:
            function()
            done.set()

        self.loop.call_soon_threadsafe(run)
        assert done.wait(PATIENCE_S)

    def emit(self, message: wire.Message) -> None:
        self.call(lambda: self._emit(message))

    def set_hints(self, *hints: str) -> None:
        self.hints = hints

        def publish() -> None:
            self.put_row()
            self._emit(wire.HintsChanged(self.epoch))

        self.call(publish)

    def tell(self, *messages: wire.Message) -> None:
        """Put the row on the board as it is now, then emit *messages*."""

        def publish() -> None:
            self.put_row()
            for message in messages:
                self._emit(message)

        self.call(publish)

    def drop_streams(self) -> None:
        """Break every event stream."""

        def drop() -> None:
            for queue in self._streams:
                queue.put_nowait(None)

        self.call(drop)

    def close(self) -> None:
        """Vanish like a killed process: every connection breaks, the socket's file stays."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(PATIENCE_S)
            assert not self._thread.is_alive()

    def _serve(self, ready: threading.Event) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await self._app(scope, receive, send)

        config = uvicorn.Config(
            app, lifespan="off", interface="asgi3", ws="websockets-sansio", log_config=None, access_log=False,
            ws_ping_interval=None, ws_max_size=1 << 40, ws_per_message_deflate=False,
            proxy_headers=False, timeout_keep_alive=3600, server_header=False, date_header=False,
        )  # fmt: skip
        config.load()
        host = self

        class Counted(HttpToolsProtocol):
            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                host.connections_made += 1
                super().connection_made(transport)

        def protocol() -> HttpToolsProtocol:
            return Counted(config, self._state, {}, _loop=self.loop)

        self.path.unlink(missing_ok=True)
        server = self.loop.run_until_complete(
            self.loop.create_unix_server(protocol, str(self.path), backlog=1024)
        )
        ready.set()
        self.loop.run_forever()
        server.close()
        for connection in list(self._state.connections):
            connection.transport.abort()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(asyncio.sleep(0.01))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if scope["type"] == "websocket":
            await self._talk(scope, receive, send)
        elif path == wire.EVENTS_PATH and self.streams_refused:
            self.streams_refused -= 1
            await answer(send, status=503)
        elif path == wire.EVENTS_PATH:
            with contextlib.suppress(asyncio.CancelledError):
                await self._stream(send)
        elif path.startswith(wire.CANCEL_PATH):
            await self._cancel(path.removeprefix(wire.CANCEL_PATH), send)
        elif path.startswith(wire.PREVIEW_PATH):
            self.previewed.append(path.removeprefix(wire.PREVIEW_PATH))
            await answer(send, status=202)
        else:
            await self._work(scope, receive, send)

    async def _talk(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name.lower(), value) for name, value in scope["headers"]]
        seen = Seen("GET", scope["raw_path"], scope["query_string"], headers, b"")
        if self.bounces or len(self.executing) >= self.slots:
            self.bounces -= bool(self.bounces)
            response = Response(status_code=503, headers={wire.H_BOUNCED: "1"})
            await response(scope, receive, send)
            return
        self.executing.append(seen.request)
        self.seen.append(seen)
        try:
            await self.talker(seen, receive, send)
        finally:
            self.release(seen.request)

    async def _cancel(self, request: str, send: Send) -> None:
        self.cancels_asked += 1
        if request in self.executing:
            self.cancelled.append(request)
            await answer(send, status=202)
        else:
            await answer(send, status=404)

    async def _work(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        seen = Seen(scope["method"], scope["raw_path"], scope["query_string"], list(scope["headers"]), body)
        if seen.raw_path == wire.LOAD_PATH.encode():
            self.ordered.append(json.loads(body))
            await answer(send, status=wire.ACCEPTED)
            return
        if seen.raw_path in (b"/docs", b"/openapi.json"):
            self.seen.append(seen)
            await self.handler(seen, send)
            return
        self.at_door += 1
        if self.door is not None:
            await wait_on_loop(self.door)
        if self.bounces or len(self.executing) >= self.slots:
            self.bounces -= bool(self.bounces)
            await answer(send, status=503, headers=((wire.H_BOUNCED.encode(), b"1"),))
            return
        self.executing.append(seen.request)
        self.seen.append(seen)
        try:
            await self.handler(seen, send)
        finally:
            self.release(seen.request)

    def release(self, request: str) -> None:
        """Give a slot back; on the host's loop."""
        if request in self.executing:
            self.executing.remove(request)
            self.put_row()
            if self.tells_release:
                self._emit(wire.Released(self.epoch, request))

    async def _stream(self, send: Send) -> None:
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        queue.put_nowait(
            wire.encode(wire.Hello(self.epoch, self.slots, list(self.executing), **self.declares))
        )
        for message in self.recap:
            queue.put_nowait(wire.encode(message))
        self._streams.add(queue)
        self.streams_opened += 1
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while (line := await queue.get()) is not None:
                await send({"type": "http.response.body", "body": line, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._streams.discard(queue)

    def _emit(self, message: wire.Message) -> None:
        for queue in self._streams:
            queue.put_nowait(wire.encode(message))

    def put_row(self) -> None:
        hints = None if self.hints is None else tuple(Hint(hint) for hint in self.hints)
        row = RunnerRow(epoch=Epoch(self.epoch), slots=self.slots, hints=hints, models=self.models)
        self._board.put_runner(self.runner, row)


class Gate:
    """A handler that answers when it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()

    async def __call__(self, _: Seen, send: Send) -> None:
        await wait_on_loop(self.opened)
        await answer(send)
