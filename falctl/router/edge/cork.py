"""Joins an answer's head with the first bytes of its body, so that a short answer leaves in one write."""

from __future__ import annotations

import asyncio
from typing import Final

_JOINED_BYTES_MAX: Final = 64 << 10
"""A longer body is written on its own: joining copies it."""


class CorkedTransport:
    """
    What uvicorn's cycle needs of a transport. Its first write is held back until the next, or until the loop runs.

    uvicorn writes head and body apart, and uvloop makes a system call of each, which costs more than all of our
    own work for a request.
    """

    __slots__ = ("_first", "_held", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""
        self._first = True

    def write(self, data: bytes) -> None:
        if self._first:
            self._first = False
            self._held = data
            self._loop.call_soon(self._flush)
            return
        if self._held and len(data) <= _JOINED_BYTES_MAX:
            self._held, data = b"", self._held + data
        self._flush()
        self._write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def _flush(self) -> None:
        if self._held:
            held, self._held = self._held, b""
            self._write(held)

    def _write(self, data: bytes) -> None:
        # Where the client is gone, uvloop raises: a page that is left would cost two screens of the log.
        if not self._transport.is_closing():
            self._transport.write(data)
