"""A real router process, with its supervisor's end of the channel in the test, and hosts that do as they are told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from falctl import lifeline, wire
from falctl.board.board import Board
from falctl.board.rows import LifeRow, RunnerRow
from falctl.clock import monotonic_s
from falctl.config import Config
from falctl.core.types import Epoch, Hint, RunnerId, RunnerState
from falctl.home import Home
from tests.wait import until

ADMIN_TOKEN = "admin-token-of-this-test"
PATIENCE_S = 15.0


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


async def answer(
    send: Send, body: bytes = b"ok", *, status: int = 200, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
    """Send a whole answer with its length."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": body})


async def say_ok(_: Seen, send: Send) -> None:
    await answer(send)


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
    bounces: int = 0
    """How many of the next requests are bounced."""
    executing: list[str] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    connections_made: int = 0
    streams_opened: int = 0
    tells_release: bool = True

    def __post_init__(self) -> None:
        self._board = Board.attach(self.board_fd)
        self._streams: set[asyncio.Queue[bytes | None]] = set()
        self._state = ServerState()
        self.loop = asyncio.new_event_loop()
        self._put_row()
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
            self._put_row()
            self._emit(wire.HintsChanged(self.epoch))

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
            app, lifespan="off", interface="asgi3", ws="none", log_config=None, access_log=False,
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
        if path == wire.EVENTS_PATH:
            with contextlib.suppress(asyncio.CancelledError):
                await self._stream(send)
        elif path.startswith(wire.CANCEL_PATH):
            self.cancelled.append(path.removeprefix(wire.CANCEL_PATH))
            await answer(send, status=202)
        else:
            await self._work(scope, receive, send)

    async def _work(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        seen = Seen(scope["method"], scope["raw_path"], scope["query_string"], list(scope["headers"]), body)
        if seen.raw_path in (b"/docs", b"/openapi.json"):
            self.seen.append(seen)
            await self.handler(seen, send)
            return
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
            self._put_row()
            if self.tells_release:
                self._emit(wire.Released(self.epoch, request))

    async def _stream(self, send: Send) -> None:
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        queue.put_nowait(wire.encode(wire.Hello(self.epoch, self.slots, list(self.executing))))
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

    def _put_row(self) -> None:
        hints = None if self.hints is None else tuple(Hint(hint) for hint in self.hints)
        self._board.put_runner(self.runner, RunnerRow(epoch=Epoch(self.epoch), slots=self.slots, hints=hints))


class Setup:
    """One state directory with a board, a listening socket, hosts and (most of the time) a router."""

    def __init__(self, *, runners: int = 1, config: dict[str, Any] | None = None) -> None:
        self.home = Home(Path(tempfile.mkdtemp(prefix="f", dir="/tmp")))
        self.home.create()
        self.board = Board.create(self.home.board, runners=runners, gpus=runners)
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self.listening.getsockname()[1]
        self.config = Config.model_validate(config or {})
        self.hosts: dict[int, FakeHost] = {}
        self.router: RouterProcess | None = None
        self._routers: list[RouterProcess] = []

    def start_router(self, *, wait_for_runners: bool = True) -> RouterProcess:
        """Start a router and wait until it accepts and has found the hosts."""
        self.router = RouterProcess(self, epoch=len(self._routers) + 1)
        self._routers.append(self.router)
        self.router.expect(wire.Ready)
        if wait_for_runners:
            for host in self.hosts.values():
                self.wait_up(host.runner, host.epoch)
        return self.router

    def wait_up(self, runner: int, epoch: int) -> None:
        host = self.hosts[runner]
        until(
            lambda: host.streams_opened, within_s=PATIENCE_S, what=f"stream of runner {runner} epoch {epoch}"
        )
        until(
            lambda: self.status()["runners"][runner]["slots"], within_s=PATIENCE_S, what=f"runner {runner} up"
        )

    def add_host(self, runner: int = 0, *, epoch: int = 1, **options: Any) -> FakeHost:
        path = self.home.runner_socket(runner, epoch)
        host = FakeHost(runner, epoch, path, self.board.fd, **options)
        self.hosts[runner] = host
        self.put_life(runner, epoch, "ready")
        return host

    def put_life(self, runner: int, epoch: int, state: RunnerState) -> None:
        row = LifeRow(RunnerId(runner), Epoch(epoch), os.getpid(), state, monotonic_s(), 0, "", (runner,))
        self.board.put_life(runner, row)

    def change(self, runner: int, epoch: int, state: RunnerState, reason: str = "") -> None:
        """Say what the supervisor would say."""
        self.put_life(runner, epoch, state)
        assert self.router is not None
        self.router.send(wire.RunnerChanged(runner, epoch, state, reason))

    def status(self) -> dict[str, Any]:
        """Return GET /falctl/status."""
        import http.client
        import json

        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request("GET", "/falctl/status", headers={"x-falctl-token": ADMIN_TOKEN})
            found: dict[str, Any] = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return found

    def close(self) -> None:
        for router in self._routers:
            router.kill()
        for host in self.hosts.values():
            host.close()
        self.listening.close()
        self.board.close()
        shutil.rmtree(self.home.root, ignore_errors=True)


class RouterProcess:
    """``python -P -m falctl.router``, started as the supervisor starts it."""

    def __init__(self, setup: Setup, *, epoch: int) -> None:
        ours, theirs = socket.socketpair()
        life_read, life_write = os.pipe()
        self._channel = ours
        self._channel.settimeout(PATIENCE_S)
        self._life = life_write
        self._lines = wire.LineSplitter()
        self.received: list[wire.Message] = []
        listen_fd = setup.listening.fileno()
        fds = (theirs.fileno(), life_read, listen_fd, setup.board.fd)
        self.log_path = setup.home.root / f"router-{epoch}.log"
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "falctl.router"],
                env=os.environ
                | {
                    lifeline.ENV_CONTROL: str(theirs.fileno()),
                    lifeline.ENV_BOARD: str(setup.board.fd),
                    lifeline.ENV_LISTEN: str(listen_fd),
                    lifeline.ENV_LIFE: str(life_read),
                    lifeline.ENV_PARENT: str(os.getpid()),
                    lifeline.ENV_FAMILY: f"router-test-{os.getpid()}-{id(self)}",
                },
                pass_fds=fds,
                stderr=log,
                stdout=log,
                start_new_session=True,
                cwd=Path(__file__).parents[2],
            )
        theirs.close()
        os.close(life_read)
        url = f"http://127.0.0.1:{setup.port}"
        config = setup.config.model_dump(mode="json")
        self.send(wire.RouterSpec(epoch, str(setup.home.root), url, ADMIN_TOKEN, config))

    def send(self, message: wire.Message) -> None:
        self._channel.sendall(wire.encode(message))

    def expect(self, kind: type[Any]) -> Any:
        """Return the next message of *kind*."""
        while True:
            for i, message in enumerate(self.received):
                if isinstance(message, kind):
                    return self.received.pop(i)
            try:
                chunk = self._channel.recv(1 << 16)
            except TimeoutError:
                chunk = b""
            assert chunk, f"no {kind.__name__}; the router says:\n{self.log}"
            self.received += [wire.decode(line) for line in self._lines.feed(chunk)]

    def heard(self, kind: type[Any], *, within_s: float) -> bool:
        """Return whether a message of *kind* comes within *within_s*."""
        self._channel.settimeout(within_s)
        try:
            self.received += [wire.decode(line) for line in self._lines.feed(self._channel.recv(1 << 16))]
        except TimeoutError:
            pass
        finally:
            self._channel.settimeout(PATIENCE_S)
        return any(isinstance(message, kind) for message in self.received)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE_S)
        self._channel.close()
        if self._life >= 0:
            os.close(self._life)
            self._life = -1


@contextlib.contextmanager
def serving(*, runners: int = 1, config: dict[str, Any] | None = None, **host: Any) -> Iterator[Setup]:
    """Give a router with *runners* fake hosts of these options."""
    setup = Setup(runners=runners, config=config)
    try:
        for runner in range(runners):
            setup.add_host(runner, **host)
        setup.start_router()
        yield setup
    finally:
        setup.close()
