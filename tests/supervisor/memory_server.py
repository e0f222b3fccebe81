"""The supervisor's host memory on an event loop of its own, for runners that are threads or processes of a test."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from falctl.board.rows import MemoryRow
from falctl.core.host_memory import Holder
from falctl.core.types import Epoch, RunnerId
from falctl.lifeline import ENV_MEMORY
from falctl.supervisor.host_memory import HostMemory
from tests.wait import until

REPOSITORY: Final = Path(__file__).parents[2]
STEP_S: Final = 180.0
T = TypeVar("T")


class Runner:
    """A process that runs `tests.supervisor.memory_runner`: told by lines, answers by lines."""

    def __init__(self, server: MemoryServer, runner: int) -> None:
        self._server = server
        self.holder, theirs = server.connect(runner)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.supervisor.memory_runner"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            pass_fds=[theirs.fileno()],
            env={**os.environ, ENV_MEMORY: str(theirs.fileno()), "PYTHONPATH": str(REPOSITORY)},
        )
        theirs.close()

    def tell(self, *words: object) -> None:
        """Give it an order."""
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        """Return the next line that it prints; "" when it has ended. It is the test's timeout that bounds this."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, *words: object) -> str:
        """Give it an order, and return its answer."""
        self.tell(*words)
        return self.hear()

    def kill(self) -> None:
        """SIGKILL it, and let the supervisor learn of its end, as `wait` tells it."""
        self.process.kill()
        self.bury()

    def bury(self) -> int:
        """Wait for its end, let the supervisor learn of it, and return its exit code."""
        code = self.process.wait(STEP_S)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self._server.call(lambda memory: memory.bury(self.holder))
        return code


class MemoryServer:
    """A block in which the memory is there; its end gives all of it back, and ends runners that are left."""

    def __init__(
        self, budget_bytes: int, *, keep_alive_s: float | None = None, registers: bool = False
    ) -> None:
        self._budget_bytes = budget_bytes
        self._keep_alive_s = keep_alive_s
        self._registers = registers
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._epochs: dict[int, int] = {}
        self._runners: list[Runner] = []
        self.rows: list[MemoryRow] = []
        """All figures that were published."""

    def __enter__(self) -> Self:
        self._thread.start()
        self.memory = HostMemory(
            self._budget_bytes,
            keep_alive_s=self._keep_alive_s,
            changed=self.rows.append,
            registers=self._registers,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for runner in self._runners:
            if runner.process.returncode is None:
                runner.kill()
        self.close_memory()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STEP_S)
        self._loop.close()

    def close_memory(self) -> None:
        """Have the memory closed, and wait for it."""
        asyncio.run_coroutine_threadsafe(self.memory.close(), self._loop).result(STEP_S)

    def call(self, what: Callable[[HostMemory], T]) -> T:
        """Return what *what* does to the memory on its loop."""

        async def on_loop() -> T:
            return what(self.memory)

        return asyncio.run_coroutine_threadsafe(on_loop(), self._loop).result(STEP_S)

    def connect(self, runner: int) -> tuple[Holder, socket.socket]:
        """Return the next incarnation of *runner*, and its end of a channel."""
        self._epochs[runner] = self._epochs.get(runner, 0) + 1
        holder = Holder(RunnerId(runner), Epoch(self._epochs[runner]))
        return holder, self.call(lambda memory: memory.connect(holder))

    def start(self, runner: int) -> Runner:
        """Start the next incarnation of *runner* as a process."""
        self._runners.append(Runner(self, runner))
        return self._runners[-1]

    @property
    def row(self) -> MemoryRow:
        return self.call(lambda memory: memory.row)

    def wait_used(self, used_bytes: int) -> None:
        """Wait until runners refer to exactly *used_bytes*: a release is a message."""
        until(lambda: self.row.used_bytes == used_bytes, within_s=STEP_S, what=f"{used_bytes} bytes are used")
