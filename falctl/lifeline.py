"""
How a child process is tied to its supervisor, so that nothing outlives `falctl up`.

Four ties, each covering what the one before cannot:

1. ``prctl(PR_SET_PDEATHSIG, SIGKILL)``, the child's first act: the kernel kills the child when the supervisor
   dies, also while the child is stuck in C code with the GIL held. Then the child looks whether its parent is
   still the one that spawned it, since a parent that died before the call is never reported.
2. A *guard*, forked before anything heavy is imported: it sleeps on the read end of a pipe whose only write end
   the supervisor holds; on end-of-file it kills the child's process group, so that grandchildren die too, which
   the first tie does not reach.
3. The guard then looks for processes that left the group (``setsid``) but still carry the family mark in their
   environment.
4. A daemon thread reads the control channel; its end-of-file means the same.

When a child dies alone, the supervisor calls `kill_family` after ``wait()``: the guard is a member of the group,
so the group's number cannot have been reused before.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import select
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from falctl.lines import LineSplitter
from falctl.wire import HostSpec, Message, RouterSpec, decode, encode

log = logging.getLogger(__name__)

ENV_CONTROL: Final = "FALCTL_CONTROL_FD"
ENV_BOARD: Final = "FALCTL_BOARD_FD"
ENV_LISTEN: Final = "FALCTL_LISTEN_FD"
ENV_TLS: Final = "FALCTL_TLS_FD"
ENV_LIFE: Final = "FALCTL_LIFE_FD"
ENV_PARENT: Final = "FALCTL_PARENT_PID"
ENV_FAMILY: Final = "FALCTL_FAMILY"
"""A mark that is unique per child; grandchildren inherit it with the environment."""
ENV_NATIVE: Final = "FALCTL_NATIVE_FDS"
ENV_MEMORY: Final = "FALCTL_MEMORY_FD"

_SCANS_MAX: Final = 10
"""A killed process may be seen once more before it is gone, so the last scan need not find nothing."""

_FINISH_MS: Final = 200
"""How long the rest of a line may wait for the supervisor to make room for it."""

_BADNESS: Final = 500
_BADNESS_MAX: Final = 1000
"""Of /proc/PID/oom_score_adj, which anybody may raise."""

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15


@dataclass(frozen=True, slots=True)
class NativeFds:
    """Two pipes for what a host's C libraries and children print: of standard output, and of standard error."""

    reads: tuple[int, int]
    """Shared with the supervisor; they do not block."""
    writes: tuple[int, int]

    @property
    def all(self) -> tuple[int, ...]:
        """Return every descriptor, as the environment names them."""
        return (*self.reads, *self.writes)


class Control:
    """The child's end of the control channel. Sending is thread-safe and takes a fraction of a second at most."""

    def __init__(self, channel: socket.socket, on_end: Callable[[], None]) -> None:
        self._channel = channel
        self._on_end = on_end
        self._lines = LineSplitter()
        self._send_lock = threading.Lock()
        self._unsent = b""
        self._sink_lock = threading.Lock()
        self._early: list[Message] = []
        self._sink: Callable[[Message], None] = self._early.append
        self.board_fd = int(os.environ.pop(ENV_BOARD))
        listen = os.environ.pop(ENV_LISTEN, None)
        self.listen_fd = None if listen is None else int(listen)
        tls = os.environ.pop(ENV_TLS, None)
        self.tls_fd = None if tls is None else int(tls)
        self.native = _native_fds(os.environ.pop(ENV_NATIVE, ""))
        """None: there are none, and nobody is to redirect what is printed."""
        memory = os.environ.pop(ENV_MEMORY, None)
        self.memory = None if memory is None else _socket(int(memory))
        """The channel on which a runner asks for host memory (`falctl.memory_wire`); None: it shares none."""
        self.spec = self._first()
        threading.Thread(target=self._read, name="control", daemon=True).start()

    def send(self, message: Message) -> None:
        """Send *message* to the supervisor, whole; dropped when it has not read for a long time or is gone."""
        line = encode(message)
        with self._send_lock, contextlib.suppress(OSError):
            self._finish_line()
            sent = self._channel.send(line, socket.MSG_DONTWAIT)
            self._unsent = line[sent:]
            self._finish_line()

    def messages(self, loop: asyncio.AbstractEventLoop) -> asyncio.Queue[Message]:
        """Return a queue on *loop* that gets what the supervisor sent and will send. Call once."""
        queue: asyncio.Queue[Message] = asyncio.Queue()
        with self._sink_lock:
            for message in self._early:
                queue.put_nowait(message)
            self._sink = lambda message: _post(loop, queue, message)
        return queue

    def _finish_line(self) -> None:
        """Send the rest of a line that has gone in part. Raises OSError if it cannot now; then the next message tries."""
        room = select.poll()
        room.register(self._channel, select.POLLOUT)
        while self._unsent:
            if not room.poll(_FINISH_MS):
                raise TimeoutError
            sent = self._channel.send(self._unsent, socket.MSG_DONTWAIT)
            self._unsent = self._unsent[sent:]

    def _first(self) -> HostSpec | RouterSpec:
        while chunk := self._channel.recv(1 << 16):
            messages = [decode(line) for line in self._lines.feed(chunk)]
            if messages:
                self._early += messages[1:]
                assert isinstance(messages[0], HostSpec | RouterSpec), "the first message is the spec"
                return messages[0]
        self._on_end()
        msg = "the supervisor is gone"
        raise SystemExit(msg)

    def _read(self) -> None:
        try:
            while chunk := self._channel.recv(1 << 16):
                for line in self._lines.feed(chunk):
                    with self._sink_lock:
                        self._sink(decode(line))
        except OSError:
            log.debug("control.broken")
        self._on_end()


def begin(*, guarded: bool) -> Control:
    """
    Tie this process to its supervisor; call before importing anything heavy or starting a thread.

    *guarded*: whether grandchildren are possible, so that a guard process is forked.
    """
    _die_with_parent(int(os.environ.pop(ENV_PARENT)))
    life_fd = int(os.environ.pop(ENV_LIFE))
    family = os.environ[ENV_FAMILY]
    channel = _socket(int(os.environ.pop(ENV_CONTROL)))
    guard = os.fork() if guarded else None
    if guard == 0:
        _guard(life_fd, family)
    if guarded:
        _give_way()
    os.close(life_fd)
    group = os.getpgid(0)
    return Control(channel, lambda: kill_family(group, family, spare=guard))


def kill_family(group: int, family: str, *, spare: int | None = None) -> None:
    """
    SIGKILL every process that carries the mark *family*, and at last, in one step, process group *group*.

    *spare*: a member of the group that must live until that last step. The end of the supervisor wakes us a moment
    before it kills us, and we would take the guard along that was to finish the work.
    """
    for _ in range(_SCANS_MAX):  # again, because one of them may have forked behind the back of the scan
        if not (found := _marked(family) - {os.getpid(), spare}):
            break
        for pid in sorted(found):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _marked(family: str) -> set[int]:
    """Return who carries the mark; a zombie's environment reads as empty."""
    mark = f"{ENV_FAMILY}={family}".encode()
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.add(int(entry.name))
    return found


def _die_with_parent(parent: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(1)


def _give_way() -> None:
    """Be ended before the supervisor and the router, and our children with us, when the machine is out of memory."""
    path = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError, ValueError):  # hardened, perhaps: it is a wish
        path.write_text(str(min(_BADNESS_MAX, int(path.read_text()) + _BADNESS)))


def _guard(life_fd: int, family: str) -> None:
    """Sleep until the supervisor is gone, then kill the family, ourselves included. Never returns."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_NAME, b"falctl-guard", 0, 0, 0)
    keep = os.dup2(life_fd, 0)
    os.closerange(1, 1 << 16)
    with contextlib.suppress(OSError):
        while os.read(keep, 1):
            pass
    kill_family(os.getpgid(0), family)
    os._exit(0)


def _socket(number: int) -> socket.socket:
    inherited = socket.socket(fileno=number)
    inherited.set_inheritable(False)
    return inherited


def _native_fds(named: str) -> NativeFds | None:
    if not named:
        return None
    out, err, out_end, err_end = map(int, named.split(","))
    for number in (out, err, out_end, err_end):
        os.set_inheritable(number, False)  # noqa: FBT003 - the signature of os
    return NativeFds((out, err), (out_end, err_end))


def _post(loop: asyncio.AbstractEventLoop, queue: asyncio.Queue[Message], message: Message) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has been closed: we are leaving anyway
        loop.call_soon_threadsafe(queue.put_nowait, message)
