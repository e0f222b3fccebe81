"""A real host process, driven as the supervisor and the router drive it: control channel, Unix socket, board."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from falctl import lifeline
from falctl.board.board import Board
from falctl.board.rows import RunnerRow
from falctl.config import Config
from falctl.lines import LineSplitter
from falctl.wire import EVENTS_PATH, Failed, HostSpec, Message, Ready, Stop, decode, encode
from tests.wait import until

REPOSITORY = Path(__file__).parents[2]
START_S = 180.0
STEP_S = 120.0


M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP answer, whole."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def timings(self) -> dict[str, str]:
        return dict(part.split("=") for part in self.headers["x-falctl-timings"].split(";"))


class UnixConnection(http.client.HTTPConnection):
    """http.client over a Unix socket."""

    def __init__(self, path: str, timeout_s: float = STEP_S) -> None:
        super().__init__("host", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@dataclass
class Events:
    """A reader of the event stream, on its own thread."""

    connection: UnixConnection
    messages: queue.Queue[Message] = field(default_factory=queue.Queue)

    def next(self) -> Message:
        return self.messages.get(timeout=STEP_S)

    def until(self, kind: type[M]) -> M:
        while not isinstance(message := self.next(), kind):
            pass
        return message

    def read(self, response: http.client.HTTPResponse) -> None:
        splitter = LineSplitter()
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError, AttributeError):
            while chunk := response.read1(65536):
                for line in splitter.feed(chunk):
                    self.messages.put(decode(line))


class Host:
    """A host process; `with Host(app) as host:` waits until it is ready."""

    def __init__(
        self,
        app: str,
        *,
        config: Mapping[str, Any] | None = None,
        cards: tuple[str, ...] = (),
        environ: Mapping[str, str] | None = None,
        cwd: Path = REPOSITORY,
        wait: bool = True,
        python: str = sys.executable,
        spec: Mapping[str, Any] | None = None,
    ) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="f"))
        self.files = self.home / "files"
        self.files.mkdir()
        self._wait = wait
        self._board = Board.create(self.home / "board", runners=1, gpus=1)
        self._ours, theirs = socket.socketpair()
        life_read, self.life_fd = os.pipe()
        self._errors = (self.home / "stderr").open("ab")
        self._native = [*os.pipe(), *os.pipe()]
        for read in self._native[::2]:
            os.set_blocking(read, False)
        family = secrets.token_hex(8)
        self.process = subprocess.Popen(
            [python, "-P", "-m", "falctl.host"],
            stdin=subprocess.DEVNULL,
            stdout=self._errors,
            stderr=self._errors,
            pass_fds=(theirs.fileno(), self._board.fd, life_read, *self._native),
            start_new_session=True,
            env={
                **os.environ,
                "PYTHONPATH": str(REPOSITORY),
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
                "CUDA_VISIBLE_DEVICES": "",
                **(environ or {}),
                lifeline.ENV_CONTROL: str(theirs.fileno()),
                lifeline.ENV_BOARD: str(self._board.fd),
                lifeline.ENV_LIFE: str(life_read),
                lifeline.ENV_PARENT: str(os.getpid()),
                lifeline.ENV_FAMILY: family,
                lifeline.ENV_NATIVE: ",".join(map(str, self._native[::2] + self._native[1::2])),
            },
        )
        theirs.close()
        for number in (life_read, *self._native[1::2]):
            os.close(number)
        plain = HostSpec(
            runner=0,
            epoch=1,
            app=app,
            cwd=str(cwd),
            socket=str(self.home / "run" / "r0-1.sock"),
            cards=list(cards),
            card_names=["a card"] * len(cards),
            driver="570.1" if cards else "",
            files_dir=str(self.files),
            files_url="http://127.0.0.1:8808/files",
            config=Config.model_validate(config or {}).model_dump(mode="json"),
            data_dir=str(self.home / "data"),
        )
        self.spec = replace(plain, **(spec or {}))
        self.said: queue.Queue[Message] = queue.Queue()
        self.send(self.spec)
        threading.Thread(target=self._listen, daemon=True).start()

    def __enter__(self) -> Self:
        if self._wait:
            try:
                self.ready()
            except BaseException:
                self.close()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=STEP_S)
        for number in (self.life_fd, *self._native[::2]):
            os.close(number)
        self._ours.close()
        self._errors.close()
        self._board.close()
        shutil.rmtree(self.home, ignore_errors=True)

    def send(self, message: Message) -> None:
        self._ours.sendall(encode(message))

    def heard(self, kind: type[Message], within_s: float = STEP_S) -> Any:
        """Return the next message of *kind*, skipping others."""
        while True:
            try:
                message = self.said.get(timeout=within_s)
            except queue.Empty:
                raise AssertionError(f"no {kind.__name__}; the host wrote:\n{self.output()}") from None
            if isinstance(message, kind):
                return message
            assert not isinstance(message, Failed), message

    def ready(self) -> Ready:
        ready: Ready = self.heard(Ready, START_S)
        return ready

    def stop(self) -> int:
        self.send(Stop())
        return self.process.wait(timeout=STEP_S)

    def output(self) -> str:
        return (self.home / "stderr").read_text()

    @property
    def row(self) -> RunnerRow:
        row = self._board.runner(0)
        assert row is not None, "nothing published"
        return row

    def connect(self) -> UnixConnection:
        return UnixConnection(self.spec.socket)

    def post(
        self, path: str = "/", body: Any = None, headers: Mapping[str, str | bytes] | None = None
    ) -> Reply:
        return self.ask("POST", path, json.dumps({} if body is None else body).encode(), headers)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str | bytes] | None = None,
    ) -> Reply:
        connection = self.connect()
        try:
            fields = {"Content-Type": "application/json", **(headers or {})}
            connection.request(method, path, body, fields)
            response = connection.getresponse()
            read = response.read()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, read)
        finally:
            connection.close()

    def later(self, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Later:
        return Later(self, path, body, headers)

    @contextlib.contextmanager
    def events(self) -> Iterator[Events]:
        connection = self.connect()
        connection.timeout = 120
        connection.request("GET", EVENTS_PATH)
        response = connection.getresponse()
        assert response.status == 200
        events = Events(connection)
        thread = threading.Thread(target=events.read, args=(response,), daemon=True)
        thread.start()
        try:
            yield events
        finally:
            with contextlib.suppress(OSError):
                sock = connection.sock or response.fp.raw._sock  # type: ignore[attr-defined]
                sock.shutdown(socket.SHUT_RDWR)
            thread.join(STEP_S)
            response.close()
            connection.close()

    def _listen(self) -> None:
        splitter = LineSplitter()
        with contextlib.suppress(OSError):
            while chunk := self._ours.recv(65536):
                for line in splitter.feed(chunk):
                    self.said.put(decode(line))


class Later:
    """A request under way on its own thread."""

    def __init__(self, host: Host, path: str, body: Any, headers: Mapping[str, str] | None) -> None:
        self._result: queue.Queue[Reply | Exception] = queue.Queue()
        self.connection = host.connect()
        self._request = (path, json.dumps({} if body is None else body).encode(), dict(headers or {}))
        threading.Thread(target=self._run, daemon=True).start()

    def reply(self) -> Reply:
        result = self._result.get(timeout=STEP_S)
        if isinstance(result, Exception):
            raise result
        return result

    @property
    def done(self) -> bool:
        return not self._result.empty()

    def hang_up(self) -> None:
        self.connection.sock.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        path, body, headers = self._request
        try:
            self.connection.request("POST", path, body, {"Content-Type": "application/json", **headers})
            response = self.connection.getresponse()
            reply = Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        except (OSError, http.client.HTTPException) as error:
            self._result.put(error)
        else:
            self._result.put(reply)
        finally:
            self.connection.close()


def executing(host: Host, request: str) -> None:
    """Return when *request* holds a slot."""
    until(
        lambda: any(e.request == request for e in host.row.executing),
        within_s=STEP_S,
        what=f"{request} executing",
    )


def idle(host: Host) -> None:
    """Return when no request holds a slot."""
    until(lambda: not host.row.executing, within_s=STEP_S, what="host idle")
