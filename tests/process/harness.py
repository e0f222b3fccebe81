"""
The real `falctl up` as a process, driven as a person and a client drive it.

    with Falctl("runners.echo:Echo", args=("--runners", "2")) as f:
        assert f.post("/", {"a": 1}).json == {"a": 1}

It runs in a state directory of its own, on a port from the kernel. Leaving the block stops it with Ctrl-C if the
test has not ended it, and then asserts that nothing is left: no process that carries our FALCTL_HOME, no socket.
What it printed is added to whatever error the test ends with.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from falctl.board.board import Board
from falctl.board.rows import GpuRow, LifeRow
from falctl.home import Home
from tests.wait import PATIENCE_S, until

REPOSITORY: Final = Path(__file__).parents[2]
START_S: Final = 180.0
END_S: Final = 60.0
REQUEST_S: Final = 120.0
GONE_S: Final = PATIENCE_S
"""SIGKILL has been sent when `falctl up` ends; the kernel may take a moment to carry it out."""

_LISTENS: Final = re.compile(r"^falctl: .* behind (http://\S+)$")
_NOT_OURS: Final = ("FALCTL_", "CUDA_", "NVIDIA_", "FAKE_")


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP answer, whole; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Falctl:
    """
    `falctl up APP` with *args*, and *config* as the text of its configuration file, which names the apps if *app* is None.

    *env* is put over this process's environment, which loses every FALCTL_ and CUDA_ variable; *python_path* comes
    before the repository on PYTHONPATH. *start* False: entering the block only makes the directories; then
    `start`, `run` and `wait` are the test's to call.
    """

    def __init__(
        self,
        app: str | None = "runners.echo:Echo",
        *,
        config: str = "",
        env: Mapping[str, str] | None = None,
        args: Sequence[str] = (),
        python_path: Sequence[Path] = (),
        start: bool = True,
    ) -> None:
        # Directly under /tmp: the path of a Unix socket is short.
        self.root = Path(tempfile.mkdtemp(prefix="f", dir="/tmp"))
        self.home = Home(self.root / "h")
        self.cwd = self.root / "w"
        self.cwd.mkdir()
        self.url = ""
        self.lines: list[str] = []
        """What it printed so far, standard output and standard error together."""
        self.environ = self._environment(env or {}, python_path)
        self._arguments = ["--port", "0", *args, *self._config(config), *(["--", app] if app else [])]
        self._start_at_once = start
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._board: Board | None = None
        self._killed = False

    def __enter__(self) -> Self:
        if self._start_at_once:
            try:
                self.start()
                self.wait_ready()
            except BaseException as error:
                self._give_up(error)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._give_up(error)
            return
        try:
            if self.running():
                self.stop()
            self.assert_nothing_left()
        except BaseException as late:
            self._give_up(late)
            raise
        self._clean()

    # --- the process -----------------------------------------------------------------------------

    @property
    def process(self) -> subprocess.Popen[str]:
        """Return `falctl up` itself: the supervisor."""
        assert self._process is not None, "not started"
        return self._process

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def start(self) -> None:
        """Start `falctl up`, without waiting for it."""
        self._process = subprocess.Popen(
            self._command("up", *self._arguments),
            cwd=self.cwd,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()

    def wait_ready(self, *, within_s: float = START_S) -> None:
        """Wait for the line that says where it listens."""

        def listens() -> bool:
            assert self.running(), f"ended with {self.wait(within_s=1.0)} before it was ready"
            return self._find_url()

        until(listens, within_s=within_s, what="falctl up is ready")

    def wait(self, *, within_s: float = END_S) -> int:
        """Wait for it to end, and return its exit code; minus a number is the signal that killed it."""
        code = self.process.wait(max(within_s, PATIENCE_S))
        if self._reader is not None:
            self._reader.join(END_S)
        return code

    def stop(self, number: int = signal.SIGINT, *, within_s: float = END_S) -> int:
        """Send it one signal, Ctrl-C if none is named, and return its exit code."""
        self.process.send_signal(number)
        return self.wait(within_s=within_s)

    def kill(self) -> None:
        """SIGKILL the supervisor alone, and wait for its end; what it leaves is for the kernel to end."""
        self._killed = True
        self.process.kill()
        self.process.wait(END_S)

    def start_again(self) -> None:
        """Start a new `falctl up` in the state directory of one that has ended, and wait until it is ready."""
        assert not self.running(), "the former still runs"
        assert self._reader is not None, "there was no former"
        self._reader.join(END_S)
        if self._board is not None:
            self._board.close()
        self.url, self.lines, self._board, self._killed = "", [], None, False
        self.start()
        self.wait_ready()

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def run(self, *arguments: str, within_s: float = START_S) -> subprocess.CompletedProcess[str]:
        """Run another `falctl` in the same state directory to its end."""
        return subprocess.run(
            self._command(*arguments),
            cwd=self.cwd,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )

    # --- what it says ----------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return what `falctl status --json` prints."""
        done = self.run("status", "--json")
        assert done.returncode == 0, done.stderr
        table: dict[str, Any] = json.loads(done.stdout)
        return table

    def board(self) -> Board:
        """Return its board, opened once; the harness closes it."""
        if self._board is None:
            self._board = Board.open(self.home.board)
        return self._board

    def life(self, runner: int) -> LifeRow:
        """Return the row of a runner's process."""
        row = self.board().life(runner)
        assert row is not None
        return row

    def gpu(self, number: int) -> GpuRow:
        """Return a row of the GPUs; the number is the row's, not NVML's."""
        row = self.board().gpu(number)
        assert row is not None
        return row

    def pids(self) -> dict[str, int]:
        """Return the processes by name: ``supervisor``, ``router``, ``runner0`` and so on; 0: none now."""
        router = self.board().router()
        return {
            "supervisor": self.process.pid,
            "router": router.pid if router else 0,
            **{f"runner{i}": self.life(i).pid for i in range(self.board().runners)},
        }

    def family(self) -> list[int]:
        """Return every living process that carries our FALCTL_HOME, guards and grandchildren included."""
        mark = f"FALCTL_HOME={self.home.root}".encode()
        return [pid for pid in _processes() if mark in _environ_of(pid)]

    def wait_line(self, pattern: str, *, within_s: float = START_S) -> str:
        """Wait for a printed line that *pattern* (a regular expression) finds something in; return the line."""
        search = re.compile(pattern).search
        found = until(
            lambda: next((line for line in list(self.lines) if search(line)), None),
            within_s=within_s,
            what=f"a line with {pattern!r}",
        )
        assert found is not None
        return found

    def wait_state(self, runner: int, state: str, *, within_s: float = START_S) -> LifeRow:
        """Wait until a runner's process is in *state*; return its row."""
        until(lambda: self.life(runner).state == state, within_s=within_s, what=f"runner {runner} is {state}")
        return self.life(runner)

    def assert_nothing_left(self) -> None:
        """No process of ours lives, and no socket is left, unless the supervisor could not remove it."""
        until(lambda: not self.family(), within_s=GONE_S, what="no process is left")
        if not self._killed:
            assert not sorted(self.home.root.rglob("*.sock")), "sockets are left"

    # --- requests --------------------------------------------------------------------------------

    def post(
        self,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = REQUEST_S,
    ) -> Reply:
        """POST *body* as JSON, on a connection of its own, so from any thread."""
        sent = {"content-type": "application/json", **(headers or {})}
        return self._request("POST", path, json.dumps(body or {}).encode(), headers=sent, timeout_s=timeout_s)

    def get(
        self, path: str, *, headers: Mapping[str, str] | None = None, timeout_s: float = REQUEST_S
    ) -> Reply:
        """GET *path*."""
        return self._request("GET", path, None, headers=headers or {}, timeout_s=timeout_s)

    def put(self, path: str) -> Reply:
        """PUT *path*, without a body."""
        return self._request("PUT", path, None, headers={}, timeout_s=REQUEST_S)

    def _request(
        self, method: str, path: str, body: bytes | None, *, headers: Mapping[str, str], timeout_s: float
    ) -> Reply:
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=timeout_s)
        try:
            connection.request(method, path, body=body, headers=dict(headers))
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, names, answer.read())
        finally:
            connection.close()

    # --- its ground ------------------------------------------------------------------------------

    def _environment(self, env: Mapping[str, str], python_path: Sequence[Path]) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_OURS)}
        theirs = filter(None, [env.get("PYTHONPATH", os.environ.get("PYTHONPATH"))])
        return {
            **kept,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "NO_COLOR": "1",
            **env,
            "FALCTL_HOME": str(self.home.root),
            "PYTHONPATH": os.pathsep.join([*map(str, python_path), str(REPOSITORY), *theirs]),
        }

    def _config(self, text: str) -> list[str]:
        if not text:
            return []
        path = self.cwd / "test.toml"
        path.write_text(text)
        return ["-c", str(path)]

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-P", "-m", "falctl", *arguments]

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.lines.append(line.rstrip("\n"))
        process.stdout.close()

    def _find_url(self) -> bool:
        for line in list(self.lines):
            if match := _LISTENS.match(line):
                self.url = match[1]
        return bool(self.url)

    def _give_up(self, error: BaseException) -> None:
        """End everything at once, and add what was printed to *error*."""
        self._killed = True
        if self._process is not None:
            self._process.kill()  # first, since it would start others in place of the killed
            self.wait()
        for pid in self.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        error.add_note(f"--- what falctl printed ---\n{self.log}")
        if self.home.log.exists():
            error.add_note(
                f"--- its log, as it was detached ---\n{self.home.log.read_text(errors='replace')}"
            )
        self._clean()

    def _clean(self) -> None:
        if self._board is not None:
            self._board.close()
        shutil.rmtree(self.root, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a `falctl up` ended that was not meant to last."""

    code: int
    lines: list[str]


def end_of(
    app: str = "runners.echo:Echo",
    *,
    config: str = "",
    env: Mapping[str, str] | None = None,
    args: Sequence[str] = (),
    python_path: Sequence[Path] = (),
) -> Ended:
    """Return how `falctl up` ends by itself; asserts that it leaves nothing behind."""
    with Falctl(app, config=config, env=env, args=args, python_path=python_path, start=False) as f:
        f.start()
        return Ended(f.wait(within_s=START_S), f.lines)


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def _environ_of(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
