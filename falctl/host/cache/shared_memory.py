"""
Host memory that all runners of a host share: the blocks are the supervisor's, and come as descriptors.

Two threads carry the messages, because a block's end may come anywhere: whoever drops the last view of it, perhaps the
garbage collector in the middle of any code at all, only puts a line into a queue that may be entered again
(`queue.SimpleQueue`). A reference ends when the mapping does, not when somebody says so, so that the budget is one of
memory; only that a block will not be filled is told at once, for others wait.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import socket
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

import torch

from falctl import memory_wire as wire
from falctl.errors import FalctlError
from falctl.host.cache.host_memory import HostMemoryFullError
from falctl.host.cache.mapping import Mapping, allocate
from falctl.host.cache.pinning import Pinning
from falctl.host.cache.stopping import stop_if, waited

log = logging.getLogger(__name__)

PATIENCE_S: Final = 3600.0
"""How long to wait for another runner to fill a block: far beyond any read of a disk."""


class HostMemoryLostError(FalctlError):
    """Nobody answers who could give host memory."""


class SharedBlock:
    """A `HostBlock` whose bytes other runners have mapped, too. Use it on one thread at a time."""

    def __init__(self, memory: SharedMemory, mapping: Mapping, *, block: int, filled: bool) -> None:
        self._memory = memory
        self._mapping: Mapping | None = mapping
        self._block = block
        self._filled = filled

    @property
    def flat(self) -> torch.Tensor:
        """The bytes, flat uint8 and page-aligned: writable until `seal`; then a write is SIGSEGV."""
        assert self._mapping is not None, "it was released"
        return self._mapping.flat

    @property
    def filled(self) -> bool:
        return self._filled

    @property
    def mapping(self) -> Mapping:
        """Where the bytes are mapped."""
        assert self._mapping is not None, "it was released"
        return self._mapping

    def seal(self) -> None:
        """Declare the bytes complete, and give them to who waits. Views of `flat` stay valid, to be read."""
        assert not self._filled, "it was filled by another, or sealed before"
        self._memory.pin(self.mapping, read_only=False)  # as long as it is not: that works on every platform
        self.mapping.protect()
        self._filled = True
        self._memory.post(wire.Seal(self._block))

    def release(self) -> None:
        """Give the reference back, as soon as no tensor views it; an unsealed block is another's to fill at once."""
        if not self._filled:
            self._memory.post(wire.Abandon(self._block))  # the second time it changes nothing
        self._mapping = None


class _Empty:
    """The block of a component without bytes, such as an activation; nobody needs to share it."""

    filled = True

    def __init__(self) -> None:
        self.flat = torch.empty(0, dtype=torch.uint8)

    def seal(self) -> None:
        """Do nothing."""

    def release(self) -> None:
        """Do nothing."""


class _Question:
    def __init__(self) -> None:
        self.answered = threading.Event()
        self.answer: wire.Given | wire.Refused | None = None
        """None once it is answered: the supervisor is gone."""
        self.fd = -1


class SharedMemory:
    """
    A `HostMemory` over *channel* (SOCK_SEQPACKET), whose other end the supervisor has.

    *pinning* registers what is filled with CUDA; None: it stays pageable.
    """

    def __init__(
        self, channel: socket.socket, *, pinning: Pinning | None = None, patience_s: float = PATIENCE_S
    ) -> None:
        self._channel = channel
        self._pinning = pinning
        self._patience_s = patience_s
        self._numbers = itertools.count(1)
        self._outgoing: SimpleQueue[bytes | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._questions: dict[int, _Question] = {}
        self._lost = False
        channel.setblocking(True)  # noqa: FBT003 - the signature of the socket module
        self._sender = threading.Thread(target=self._send, name="host memory out", daemon=True)
        self._sender.start()
        threading.Thread(target=self._receive, name="host memory in", daemon=True).start()

    def obtain(
        self, key: str, nbytes: int, *, cancelled: threading.Event | None = None
    ) -> SharedBlock | _Empty:
        """
        Return the block of *key*; to be filled by the caller unless it is. Not for the event loop.

        Blocks while another runner fills it; else for a message there and back, and for what `allocate` and `Mapping`
        say. Two threads of a runner get two references to one block; the second waits until the first has sealed it.

        Raises:
            HostMemoryFullError: the budget, or the kernel, has no room for it; nothing is held.
            HostMemoryLostError: the supervisor is gone, or another runner has been filling it for too long.
            LoadCancelledError: *cancelled* was set before the answer came; its place among those who wait is given up.
        """
        if nbytes == 0:
            return _Empty()
        assert len(key) <= wire.KEY_CHARACTERS_MAX, "a key is a digest, not a text"
        answer, fd = self._ask(key, nbytes, cancelled)
        try:
            return self._map(answer, fd, nbytes)
        except OSError as error:
            self.post(wire.LetGo(answer.block))
            msg = f"no host memory for {nbytes} bytes, though the budget has room: {error}"
            raise HostMemoryFullError(msg) from error
        finally:
            os.close(fd)

    def post(self, message: wire.Message) -> None:
        """Send *message* soon; from any thread, finalisers included."""
        self._outgoing.put(wire.encode(message))

    def pin(self, mapping: Mapping, *, read_only: bool) -> None:
        """Register *mapping* with CUDA until it goes, if that can be; blocks while the kernel pins its pages."""
        if self._pinning is None:
            return
        end = self._pinning.pin(mapping.address, mapping.nbytes, read_only=read_only)
        if end is not None:
            mapping.before_unmap.append(end)

    def close(self) -> None:
        """Ask nothing any more: every question, waiting or new, raises `HostMemoryLostError`. Mappings stay."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)

    def _map(self, answer: wire.Given, fd: int, nbytes: int) -> SharedBlock:
        let_go = wire.LetGo(answer.block)

        def gone() -> None:
            self.post(let_go)

        if answer.filled:
            mapping = self._map_filled(fd, nbytes, gone)
        else:
            allocate(fd, nbytes)
            mapping = Mapping(fd, nbytes, writable=True, gone=gone)
        return SharedBlock(self, mapping, block=answer.block, filled=answer.filled)

    def _map_filled(self, fd: int, nbytes: int, gone: Callable[[], None]) -> Mapping:
        """Return a mapping that is read-only, but for the moment in which CUDA registers it: see `falctl.host.cache.pinning`."""
        if self._pinning is not None and (mapping := _writable(fd, nbytes, gone)) is not None:
            self.pin(mapping, read_only=False)
            mapping.protect()
            return mapping
        mapping = Mapping(fd, nbytes, writable=False, gone=gone)
        self.pin(mapping, read_only=True)
        return mapping

    def _ask(self, key: str, nbytes: int, cancelled: threading.Event | None) -> tuple[wire.Given, int]:
        number, question = next(self._numbers), _Question()
        with self._lock:
            if self._lost:
                raise HostMemoryLostError(_LOST)
            self._questions[number] = question
        self.post(wire.Obtain(number, key, nbytes))
        if not waited(question.answered, self._patience_s, cancelled=cancelled) and self._withdrawn(number):
            stop_if(cancelled)
            msg = f"another runner has been filling {key} for {self._patience_s:g} s"
            raise HostMemoryLostError(msg)
        question.answered.wait()
        match question.answer:
            case wire.Given() as given:
                return given, question.fd
            case wire.Refused(why=why, lacking_bytes=lacking_bytes):
                raise HostMemoryFullError(why, lacking_bytes=lacking_bytes or None)
            case None:
                raise HostMemoryLostError(_LOST)

    def _withdrawn(self, number: int) -> bool:
        """Wait for the answer to *number* no more; False: it is being taken just now."""
        with self._lock:  # an answer that comes after this is given back by who receives it
            withdrawn = self._questions.pop(number, None) is not None
        if withdrawn:
            self.post(wire.Withdraw(number))
        return withdrawn

    def _send(self) -> None:
        with contextlib.suppress(OSError):  # the supervisor is gone: who receives finds out
            while (datagram := self._outgoing.get()) is not None:
                self._channel.send(datagram)

    def _receive(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                datagram, fds, _, _ = socket.recv_fds(
                    self._channel, wire.DATAGRAM_BYTES_MAX, 1, socket.MSG_CMSG_CLOEXEC
                )
                if not datagram:
                    break
                answer = wire.decode(datagram)
                assert isinstance(answer, wire.Given | wire.Refused), "the supervisor only answers"
                self._take(answer, fds)
        with self._lock:
            self._lost = True
            questions, self._questions = list(self._questions.values()), {}
        for question in questions:
            question.answered.set()
        self._outgoing.put(None)
        self._sender.join()
        self._channel.close()

    def _take(self, answer: wire.Given | wire.Refused, fds: list[int]) -> None:
        with self._lock:
            question = self._questions.pop(answer.number, None)
        if question is not None:
            question.answer, question.fd = answer, fds[0] if fds else -1
            question.answered.set()
        elif isinstance(answer, wire.Given):  # who asked has given up
            self.post(wire.LetGo(answer.block))
            os.close(fds[0])


def _writable(fd: int, nbytes: int, gone: Callable[[], None]) -> Mapping | None:
    """Return a writable mapping, of which nobody knows but the caller; None: the supervisor lets nobody have one."""
    try:
        return Mapping(fd, nbytes, writable=True, gone=gone)
    except PermissionError:
        return None


_LOST: Final = "the supervisor, which holds the host memory, is gone"
