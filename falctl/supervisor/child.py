"""One incarnation of a child process: spawn it, talk to it, learn of its end, leave nothing of it behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from falctl import lifeline, tasks
from falctl.supervisor.native import NativePipes
from falctl.supervisor.output import LINE_BYTES_MAX, relay
from falctl.wire import HostSpec, Message, RouterSpec, decode, encode

log = logging.getLogger(__name__)

_LAST_WORDS_S: Final = 2.0
"""How long we read on after its death: what it wrote before lies in the socket and the pipe."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What a child is started with."""

    module: str
    name: str
    """The prefix of its lines of output."""
    spec: HostSpec | RouterSpec
    board_fd: int
    life_fd: int
    environ: Mapping[str, str]
    listen_fd: int | None = None
    tls_fd: int | None = None
    memory: socket.socket | None = None
    """A runner's end of its channel for host memory; closed when it has it."""


@dataclass(slots=True)
class Child:
    """A running child. ``exited`` resolves to its exit code once its last messages have been delivered."""

    launch: Launch
    process: asyncio.subprocess.Process
    family: str
    _writer: asyncio.StreamWriter
    exited: asyncio.Task[int] = field(init=False)

    @property
    def pid(self) -> int:
        """Return its process id, which is also its process group and session."""
        return self.process.pid

    def send(self, message: Message) -> None:
        """Send *message*; nothing happens when the child is gone."""
        with contextlib.suppress(OSError, RuntimeError):
            self._writer.write(encode(message))

    def kill(self) -> None:
        """SIGKILL the child and everything that it started."""
        lifeline.kill_family(self.pid, self.family)

    def stopped(self) -> bool:
        """Return whether somebody has stopped it (SIGSTOP, a debugger): then silence means nothing."""
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as file:  # noqa: PTH123 - /proc, read whole, hot enough
                return file.read().rpartition(b")")[2].split()[:1] in ([b"T"], [b"t"])
        except OSError:
            return False


async def spawn(launch: Launch, on_message: Callable[[Message], None]) -> Child:
    """Start the child; *on_message* gets what it says, in order, on this loop."""
    ours, theirs = socket.socketpair()
    family = secrets.token_hex(8)
    output, theirs_output = os.pipe()
    native = NativePipes(launch.name) if isinstance(launch.spec, HostSpec) else None
    fds = [theirs.fileno(), launch.board_fd, launch.life_fd, *(native.fds.all if native else ())]
    fds += [fd for fd in (launch.listen_fd, launch.tls_fd) if fd is not None]
    fds += [launch.memory.fileno()] if launch.memory is not None else []
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", launch.module),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=theirs_output,  # not PIPE: up to 3.12.3 `wait` lasts until a grandchild closes it, too (gh-119710)
            stderr=asyncio.subprocess.STDOUT,
            env=_environ(launch, theirs.fileno(), family, native),
            pass_fds=fds,
            start_new_session=True,
        )
    except BaseException:
        ours.close()
        os.close(output)
        if native is not None:
            native.close()
        raise
    finally:
        if native is not None:
            native.spawned()
        theirs.close()
        os.close(theirs_output)
        if launch.memory is not None:
            launch.memory.close()
    ours.setblocking(False)  # noqa: FBT003 - the signature of the socket module
    reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 20)
    child = Child(launch, process, family, writer)
    writer.write(encode(launch.spec))
    child.exited = tasks.spawn(
        _bury(child, _listen(reader, on_message), output=output, native=native), name=f"wait {launch.name}"
    )
    return child


def _environ(launch: Launch, control_fd: int, family: str, native: NativePipes | None) -> dict[str, str]:
    sockets = {lifeline.ENV_LISTEN: launch.listen_fd, lifeline.ENV_TLS: launch.tls_fd}
    listen = {name: str(fd) for name, fd in sockets.items() if fd is not None}
    pipes = {} if native is None else {lifeline.ENV_NATIVE: ",".join(map(str, native.fds.all))}
    memory = {} if launch.memory is None else {lifeline.ENV_MEMORY: str(launch.memory.fileno())}
    return {
        **launch.environ,
        **listen,
        **pipes,
        **memory,
        "PYTHONUNBUFFERED": "1",
        lifeline.ENV_CONTROL: str(control_fd),
        lifeline.ENV_BOARD: str(launch.board_fd),
        lifeline.ENV_LIFE: str(launch.life_fd),
        lifeline.ENV_PARENT: str(os.getpid()),
        lifeline.ENV_FAMILY: family,
    }


async def _listen(reader: asyncio.StreamReader, on_message: Callable[[Message], None]) -> None:
    with contextlib.suppress(OSError):
        while line := await reader.readline():
            try:
                message = decode(line)
            except ValueError as error:
                log.warning("control.unknown %s", error)
                continue
            on_message(message)


async def _bury(
    child: Child, listen: Coroutine[Any, Any, None], *, output: int, native: NativePipes | None
) -> int:
    name = child.launch.name
    listening = tasks.spawn(listen, name=f"control {name}")
    relaying = tasks.spawn(_relay(output, name), name=f"output {name}")
    relieving = None if native is None else tasks.spawn(native.relieve_for_ever(), name=f"relieve {name}")
    code = await child.process.wait()
    child.kill()  # what it left behind: the guard, and grandchildren
    await asyncio.wait((listening, relaying), timeout=_LAST_WORDS_S)
    listening.cancel()
    relaying.cancel()
    if native is not None and relieving is not None:
        relieving.cancel()
        native.close()
    child._writer.close()  # noqa: SLF001 - this function is the end of Child's life
    return code


async def _relay(output: int, name: str) -> None:
    reader = asyncio.StreamReader(limit=LINE_BYTES_MAX)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(output, "rb", buffering=0)
    )
    try:
        await relay(reader, name)
    finally:
        transport.close()
