"""A request to an app that the router makes on behalf of a client's, through the same door and the same queue."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from starlette.types import Message

from falctl.errors import RequestError
from falctl.router.edge.answers import RawHeaders
from falctl.router.edge.call import Call
from falctl.router.edge.connection import STATE_KEY

ANSWER_BYTES_MAX: Final = 64 << 20
"""Of what is kept in memory, because nobody reads it as it comes."""
_NOT_INNER: Final = frozenset(
    {
        b"accept",
        b"accept-encoding",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"expect",
        b"origin",
    }
)
"""They speak of the client's own body, or of the answer that the client gets."""


@dataclass(frozen=True, slots=True)
class InnerAnswer:
    """The whole answer of an app."""

    status: int
    headers: RawHeaders
    body: bytes


class _Sender:
    """In the place of a client's connection: it has sent everything, and leaves when it is told to."""

    has_input = True

    def __init__(self) -> None:
        self.gone = False
        self.broken = False
        self.on_gone: Callable[[], None] | None = None

    def break_off(self) -> None:
        self.broken = True


class InnerRequest:
    """A POST of *body*, JSON, to *path*; *headers* are put in the place of those of *outer*."""

    def __init__(self, outer: Call, path: bytes, *, body: bytes, headers: RawHeaders) -> None:
        self._sender = _Sender()
        self._body = body
        self._status = 0
        self._headers: RawHeaders = []
        self._chunks: list[bytes] = []
        self._size = 0
        named = {name for name, _ in headers} | _NOT_INNER
        kept = [(name, value) for name, value in outer.scope["headers"] if name not in named]
        scope = {
            **outer.scope,
            "method": "POST",
            "path": path.decode(),
            "raw_path": path,
            "query_string": b"",
            "headers": [*kept, *headers, (b"content-type", b"application/json")],
            "state": {STATE_KEY: self._sender},
        }
        self.call = Call(scope, self._receive, self._send)

    async def answer(self, serve: Callable[[Call], Awaitable[None]]) -> InnerAnswer:
        """
        Return what *serve* answers.

        Raises:
            RequestError: it refuses, the answer broke, or is larger than `ANSWER_BYTES_MAX`.
        """
        try:
            await serve(self.call)
        finally:
            self._sender.on_gone = None  # who leaves later has nothing to cancel
        if self._sender.broken:
            msg = "the app's answer broke off"
            raise RequestError(msg)
        if self._size > ANSWER_BYTES_MAX:
            msg = f"the app's answer is over {ANSWER_BYTES_MAX >> 20} MiB"
            raise RequestError(msg)
        return InnerAnswer(self._status, self._headers, b"".join(self._chunks))

    def leave(self) -> None:
        """Want no answer any more: what waits is dropped, what runs is cancelled."""
        if not self._sender.gone:
            self._sender.gone = True
            if (on_gone := self._sender.on_gone) is not None:
                on_gone()

    async def _receive(self) -> Message:
        return {"type": "http.request", "body": self._body, "more_body": False}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], message["headers"]
            return
        self._size += len(message["body"])
        if self._size <= ANSWER_BYTES_MAX:
            self._chunks.append(message["body"])
