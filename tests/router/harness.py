"""A real router process, with its supervisor's end of the channel in the test, and hosts that do as they are told."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from falctl import lifeline, wire
from falctl.board.board import Board
from falctl.board.rows import LifeRow
from falctl.clock import monotonic_s
from falctl.config import Config
from falctl.core.types import Epoch, RunnerId, RunnerState
from falctl.home import Home
from falctl.lines import LineSplitter
from tests.router.fake_host import PATIENCE_S, FakeHost, say_ok
from tests.wait import until

ADMIN_TOKEN = "admin-token-of-this-test"


class Setup:
    """One state directory with a board, a listening socket, hosts and (most of the time) a router."""

    def __init__(
        self,
        *,
        runners: int = 1,
        config: dict[str, Any] | None = None,
        apps: dict[str, list[int]] | None = None,
    ) -> None:
        self.apps = apps or {}
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
        self._lines = LineSplitter()
        self.received: list[wire.Message] = []
        listen_fd = setup.listening.fileno()
        fds = (theirs.fileno(), life_read, listen_fd, setup.board.fd)
        self.log_path = setup.home.root / f"router-{epoch}.log"
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "falctl.router"],
                env=os.environ
                | {
                    "PYTHONWARNINGS": "always::ResourceWarning",
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
        self.send(wire.RouterSpec(epoch, str(setup.home.root), url, ADMIN_TOKEN, config, apps=setup.apps))

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
def serving(
    *,
    runners: int = 1,
    config: dict[str, Any] | None = None,
    apps: dict[str, list[int]] | None = None,
    **host: Any,
) -> Iterator[Setup]:
    """Give a router with *runners* fake hosts of these options; *apps* names the runners of each, if there are several."""
    setup = Setup(runners=runners, config=config, apps=apps)
    try:
        for runner in range(runners):
            setup.add_host(runner, **host)
        setup.start_router()
        yield setup
    finally:
        setup.close()


def log_of(setup: Setup) -> str:
    assert setup.router is not None
    return setup.router.log


def waits(setup: Setup, count: int) -> None:
    until(lambda: setup.status()["queued"] == count, within_s=PATIENCE_S, what=f"{count} queued")


def idle(setup: Setup) -> None:
    until(
        lambda: [r["in_flight"] for r in setup.status()["runners"]] == [0] * len(setup.hosts),
        within_s=PATIENCE_S,
        what="no slot in use",
    )


@contextlib.contextmanager
def left_idle(setup: Setup) -> Iterator[Setup]:
    """Give *setup*, which others use too, with a first host that says ok; at the end nothing waits or runs there."""
    setup.hosts[0].handler = say_ok
    setup.hosts[0].seen.clear()
    yield setup
    waits(setup, 0)
    idle(setup)
