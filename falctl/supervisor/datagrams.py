"""
One end of a channel of datagrams on the event loop: never blocks, and passes descriptors to the other end.

A datagram arrives or the channel ends: who waits for an answer that cannot be sent sees an end-of-file, and not nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Final

log = logging.getLogger(__name__)

READS_MAX: Final = 64
"""Datagrams that are taken at once: others want the loop, too."""

WAITING_MAX: Final = 256
"""Datagrams, each with its descriptors, that wait for the other end to read; with one more it is given up."""


class Datagrams:
    """Hands what arrives at *ours* (SOCK_SEQPACKET) to *hear*. Owned by the loop that runs when it is made."""

    def __init__(self, ours: socket.socket, hear: Callable[[bytes], None], *, bytes_max: int) -> None:
        self._socket = ours
        self._hear = hear
        self._bytes_max = bytes_max
        self._waiting: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._loop = asyncio.get_running_loop()
        ours.setblocking(False)  # noqa: FBT003 - the signature of the socket module
        self._loop.add_reader(ours, self._read)

    def send(self, datagram: bytes, *fds: int) -> None:
        """Send *datagram* with copies of *fds*, later if the other end does not read now; nothing if it is closed."""
        try:
            if not self._waiting and self._sent(datagram, fds):
                return
            if len(self._waiting) >= WAITING_MAX:
                raise BlockingIOError(errno.EAGAIN, "it does not read")
            self._waiting.append((datagram, tuple(os.dup(fd) for fd in fds)))  # ours may be closed by then
            self._loop.add_writer(self._socket, self._write)
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Close this end; what waits is dropped. May be called twice."""
        if self._closed:
            return
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        while self._waiting:
            _close(self._waiting.popleft()[1])

    @property
    def _closed(self) -> bool:
        return self._socket.fileno() < 0

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(READS_MAX):
                try:
                    datagram = self._socket.recv(self._bytes_max)
                except ConnectionError:
                    datagram = b""
                if not datagram:
                    self.close()
                    return
                self._hear(datagram)
                if self._closed:
                    return

    def _write(self) -> None:
        try:
            while self._waiting and self._sent(*self._waiting[0]):
                _close(self._waiting.popleft()[1])
        except OSError as error:
            self._give_up(error)
            return
        if not self._waiting:
            self._loop.remove_writer(self._socket)

    def _sent(self, datagram: bytes, fds: tuple[int, ...]) -> bool:
        """Return whether it was sent; else there is no room now. Raises OSError."""
        try:
            socket.send_fds(self._socket, [datagram], list(fds))
        except BlockingIOError:
            return False
        return True

    def _give_up(self, error: OSError) -> None:
        gone = isinstance(error, ConnectionError) or self._closed
        log.log(logging.DEBUG if gone else logging.WARNING, "datagrams.given_up %s", error)
        self.close()


def _close(fds: tuple[int, ...]) -> None:
    for fd in fds:
        os.close(fd)
