"""
One answer on its way out: adds our headers, and gives the slot back before the last byte leaves.

The head of a plain answer waits for its body, so that the hints it carries are those after the request; the head
of a stream leaves at once with what is known then.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from starlette.responses import Response
from starlette.types import Message, Send

from falctl.clock import monotonic_s
from falctl.host.keeper import Keeper
from falctl.host.ticket import Ticket
from falctl.wire import H_HINTS, H_TIMINGS

_WITHOUT_BODY: Final = frozenset({204, 304})
_FAILED_FROM: Final = 400
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
_OURS: Final = b"x-falctl-"
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""RFC 9110, 5.6.2: a token."""
_CONTROLS: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


class UnsendableError(Exception):
    """The app's answer breaks HTTP; nothing of it has been sent."""


class Answer:
    """What the app sends, on its way to the client."""

    def __init__(self, ticket: Ticket, send: Send, *, keeper: Keeper) -> None:
        self.started = False
        """The head is out."""
        self.complete = False
        self._ticket = ticket
        self._send = send
        self._keeper = keeper
        self._head: Message | None = None
        self._bodyless = False

    async def send(self, message: Message) -> None:
        """
        Take one ASGI message of the app.

        Raises:
            OSError: a stream whose client is gone or that was cancelled; its app should stop.
            UnsendableError: this head cannot be sent; another answer may take its place.
        """
        if message["type"] == "http.response.start":
            self._head = message = _sendable(message)
            self._bodyless = message["status"] in _WITHOUT_BODY
            self._ticket.failed = message["status"] >= _FAILED_FROM
            if _is_stream(message):
                await self._keeper.refresh(self._ticket)
                await self._send_head()
            return
        last = not message.get("more_body", False)
        if last:
            await self._keeper.end(self._ticket)
        elif self._ticket.stopping:
            msg = "nobody reads this stream any more"
            raise OSError(msg)
        await self._send_head()
        await self._send({**message, "body": b""} if self._bodyless else message)
        self.complete = last

    def drop_head(self) -> None:
        """Forget a head that has not been sent, so that another answer can take its place."""
        self._head = None

    async def instead(self, response: Response) -> None:
        """Send *response* while the app still works on its own, which nobody will see."""
        self._head, self.started = None, True
        await response({"type": "http"}, _nothing, self._send)

    async def _send_head(self) -> None:
        if self._head is None:
            return
        head, self._head, self.started = self._head, None, True
        headers = [*head.get("headers", ()), (H_TIMINGS.encode(), self._timings())]
        if (hints := self._keeper.hints_header()) is not None:
            headers = [field for field in headers if field[0].lower() != H_HINTS.encode()]
            headers.append((H_HINTS.encode(), hints))
        await self._send({**head, "headers": headers})

    def _timings(self) -> bytes:
        load_s = self._ticket.load_s
        exec_s = max(0.0, monotonic_s() - self._ticket.started_at - load_s)
        cache = self._keeper.verdict(self._ticket)
        return f"cache={cache};load_s={load_s:.6f};exec_s={exec_s:.6f}".encode()


async def _nothing() -> Message:
    return {"type": "http.request"}


def without_ours(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return an app's *headers* without those by which we speak to the router, who would believe them."""
    return [(name, value) for name, value in headers if not name.lower().startswith(_OURS)]


def _sendable(head: Message) -> Message:
    """Return *head* as it may be sent: nothing of ours, and no length of a body that may not be. Raises UnsendableError."""
    status, headers = head["status"], sendable_headers(head.get("headers", ()))
    if status not in range(200, 600):
        msg = f"the app answered with the status {status!r}"
        raise UnsendableError(msg)
    if status in _WITHOUT_BODY:
        headers = [(name, value) for name, value in headers if name.lower() not in _FRAMING]
    return {**head, "headers": headers}


def sendable_headers(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return an app's *headers* without ours. Raises UnsendableError: one of them breaks HTTP."""
    kept = without_ours(headers)
    for name, value in kept:
        if not _NAME.fullmatch(name) or _CONTROLS.search(value) or _is_no_length(name, value):
            msg = f"the app answered with the header {name[:100]!r}: {value[:100]!r}"
            raise UnsendableError(msg)
    return kept


def _is_no_length(name: bytes, value: bytes) -> bool:
    return name.lower() == b"content-length" and not value.isdigit()


def _is_stream(head: Message) -> bool:
    if head["status"] in _WITHOUT_BODY:
        return False
    return not any(name.lower() == b"content-length" for name, _ in head.get("headers", ()))
