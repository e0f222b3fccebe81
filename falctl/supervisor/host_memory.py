"""
The memory of the blocks that the runners share: performs what `falctl.core.host_memory` decides.

Each block is a memfd, so that no name of it can be left behind, and no one byte of it outlives us. We hold a descriptor
of each, and pass copies; a runner's reference ends when it says so, or with its process. What we never do is touch the
bytes: a page is allocated by the runner that fills it, in its own time.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import socket
from collections.abc import Callable
from typing import Final

from falctl import memory_wire as wire
from falctl import tasks
from falctl.board.rows import MemoryRow
from falctl.clock import monotonic_s
from falctl.core.host_memory import (
    Abandoned,
    Action,
    Asked,
    Died,
    Drop,
    Event,
    Fill,
    Give,
    Holder,
    Ledger,
    LetGo,
    Protect,
    Refuse,
    Sealed,
    Squeezed,
    Ticked,
    Withdrawn,
)
from falctl.supervisor.datagrams import Datagrams

log = logging.getLogger(__name__)

F_SEAL_FUTURE_WRITE: Final = 0x10
"""Not in `fcntl` before Python 3.14. Linux 5.1; where it is missing, mappings are read-only by agreement."""


class HostMemory:
    """
    Owned by the event loop. *changed* is called with the figures after every event that may have changed them.

    Actions are performed one after another, since to free a block takes 0.1 s a GB and happens on a thread: the room
    of a block that is dropped is there before another is filled.
    # measured: 0.12 s for 1 GiB, 3 times, 2-core VM, 2026-11-23
    """

    def __init__(
        self,
        budget_bytes: int,
        *,
        keep_alive_s: float | None,
        changed: Callable[[MemoryRow], None],
        registers: bool = False,
    ) -> None:
        """*registers*: runners register blocks with CUDA, for which they map what is filled writable for a moment."""
        self._registers = registers
        self._ledger = Ledger(budget_bytes, keep_alive_s=keep_alive_s)
        self._changed = changed
        self._fds: dict[int, int] = {}
        self._channels: dict[Holder, Datagrams] = {}
        self._actions: asyncio.Queue[Action] = asyncio.Queue()
        self._performing: asyncio.Task[None] | None = None

    @property
    def row(self) -> MemoryRow:
        """Return the figures as they are now."""
        ledger = self._ledger
        return MemoryRow(
            ledger.budget_bytes, ledger.held_bytes, ledger.used_bytes, ledger.blocks, ledger.waiting
        )

    def connect(self, holder: Holder) -> socket.socket:
        """Return the runner's end of a channel for *holder*, which the caller closes once it is inherited."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channels[holder] = Datagrams(
            ours, lambda datagram: self._hear(holder, datagram), bytes_max=wire.DATAGRAM_BYTES_MAX
        )
        return theirs

    def bury(self, holder: Holder) -> None:
        """Take back all that *holder* had: ``wait()`` has told of its end, so it has nothing mapped any more."""
        if (channel := self._channels.pop(holder, None)) is not None:
            channel.close()
        self._feed(Died(holder))

    def tick(self, shortage_bytes: Callable[[], int]) -> None:
        """Let go of what has not been used for long, and of more if *shortage_bytes* tells that others need it."""
        self._feed(Ticked())
        if self._ledger.held_bytes == self._ledger.used_bytes:
            return
        if (short_bytes := shortage_bytes()) > 0:
            log.warning("memory.short bytes=%d: dropping what no runner uses", short_bytes)
            self._feed(Squeezed(short_bytes))

    async def close(self) -> None:
        """Give all memory back that no runner has mapped, on several threads, and hear nobody any more."""
        for channel in self._channels.values():
            channel.close()
        if self._performing is not None:
            self._performing.cancel()
        fds, self._fds = self._fds, {}
        await asyncio.gather(*(asyncio.to_thread(os.close, fd) for fd in fds.values()))

    def _hear(self, holder: Holder, datagram: bytes) -> None:
        try:
            message = wire.decode(datagram)
        except ValueError as error:
            log.warning("memory.unknown runner=%d %s", holder.runner, error)
            return
        match message:
            case wire.Obtain(number, key, nbytes):
                self._feed(Asked(holder, number, key, nbytes))
            case wire.Withdraw(number):
                self._feed(Withdrawn(holder, number))
            case wire.Seal(block):
                self._feed(Sealed(holder, block))
            case wire.Abandon(block):
                self._feed(Abandoned(holder, block))
            case wire.LetGo(block):
                self._feed(LetGo(holder, block))
            case _:
                log.warning("memory.unexpected runner=%d %r", holder.runner, message)

    def _feed(self, event: Event) -> None:
        for action in self._ledger.handle(event, now=monotonic_s()):
            self._actions.put_nowait(action)
        if self._performing is None:
            self._performing = tasks.spawn(self._perform_all(), name="host memory")
        self._changed(self.row)

    async def _perform_all(self) -> None:
        while True:
            action = await self._actions.get()
            try:
                await self._perform(action)
            except Exception:  # every runner waits behind this loop
                log.exception("memory.failed action=%r", action)

    async def _perform(self, action: Action) -> None:
        match action:
            case Fill():
                self._make(action)
            case Protect(block):
                self._protect(block)
            case Give(holder, number, block):
                self._send(holder, wire.Given(number, block, filled=True), block)
            case Refuse(holder, number):
                log.info("memory.refused runner=%d bytes=%d", holder.runner, action.nbytes)
                self._send(holder, wire.Refused(number, refusal(action), action.lacking_bytes))
            case Drop(block):
                if (fd := self._fds.pop(block, None)) is not None:
                    # Shielded: a thread that has not begun would be cancelled with us, and the memory stay.
                    await asyncio.shield(asyncio.to_thread(os.close, fd))

    def _make(self, fill: Fill) -> None:
        try:
            self._fds[fill.block] = make_memory(fill.nbytes)
        except OSError as error:
            log.warning("memory.failed bytes=%d %s", fill.nbytes, error)
            why = f"the kernel gives no {fill.nbytes} bytes of shared memory: {error.strerror}"
            self._send(fill.holder, wire.Refused(fill.number, why, lacking_bytes=0))
            self._feed(LetGo(fill.holder, fill.block))
            return
        self._send(fill.holder, wire.Given(fill.number, fill.block, filled=False), fill.block)

    def _protect(self, block: int) -> None:
        if self._registers:
            return  # CUDA registers nothing that is mapped read-only, and nothing else may be mapped of what is sealed so
        try:
            fcntl.fcntl(self._fds[block], fcntl.F_ADD_SEALS, F_SEAL_FUTURE_WRITE)
        except OSError as error:
            log.debug("memory.unprotected block=%d %s", block, error)

    def _send(self, holder: Holder, message: wire.Message, *blocks: int) -> None:
        if (channel := self._channels.get(holder)) is not None:
            channel.send(wire.encode(message), *(self._fds[block] for block in blocks))


def make_memory(nbytes: int) -> int:
    """Return the descriptor of *nbytes* of memory that is not allocated yet and never changes its size. Raises OSError."""
    fd = os.memfd_create("falctl-weights", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, nbytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except BaseException:
        os.close(fd)
        raise
    return fd


def refusal(refuse: Refuse) -> str:
    """Return why there is no room, with the numbers and the fix."""
    holders = ", ".join(str(runner) for runner in refuse.runners)
    used = f"{refuse.used_bytes} are in use by runner {holders}" if holders else "nothing is in use"
    return (
        f"no host memory for {refuse.nbytes} bytes: of the {refuse.budget_bytes} that all runners share "
        f"{used}; raise cache.host_memory"
    )
