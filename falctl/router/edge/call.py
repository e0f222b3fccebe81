"""One request of one client, from its headers to the last byte of its answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import Callable
from typing import Any, Final, Protocol

from starlette.types import Message, Receive, Scope, Send

from falctl.clock import monotonic_s
from falctl.core.types import RequestId
from falctl.errors import RequestError
from falctl.router.edge.answers import ORIGIN, REQUEST_ID, RawHeaders, problem
from falctl.router.edge.connection import STATE_KEY

_LINGER_S: Final = 2.0
"""How long a refused client may go on sending its body, so that it gets to read why it was refused."""


class ClientEnd(Protocol):
    """What a request needs of where it came from: a `Connection`, or the router itself."""

    gone: bool
    on_gone: Callable[[], None] | None
    """Called once when the client is gone."""

    @property
    def has_input(self) -> bool:
        """Return whether ``receive()`` would return at once."""
        ...

    def break_off(self) -> None:
        """End without completing the answer, so that the client can tell that it is not whole."""
        ...


class Call:
    """The ASGI triple with what the router knows of the request. One task owns it."""

    __slots__ = ("_send", "body_read", "connection", "cors", "head", "held_bytes", "outlives_client", "receive", "request", "scope", "started", "started_at")  # fmt: skip

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.receive = receive
        self._send = send
        self.connection: ClientEnd = scope["state"][STATE_KEY]
        self.request = RequestId(str(uuid.uuid4()))
        self.head: dict[bytes, bytes] = dict(reversed(scope["headers"]))
        """The headers by name; of several with one name the first."""
        self.cors: RawHeaders = []
        """Headers that every answer to this request gets."""
        self.started_at = monotonic_s()
        self.started = False
        self.body_read = False
        self.outlives_client = False
        """Its request runs to its end although nobody will read the answer."""
        self.held_bytes = 0
        """Bytes of its body that are counted against `queue.max_bytes`."""

    @property
    def client(self) -> str:
        """Return ``address:port`` of the client."""
        address = self.scope["client"]
        return f"{address[0]}:{address[1]}" if address else "?"

    @property
    def wants_websocket(self) -> bool:
        """Return whether it asks for a websocket, well or not."""
        return self.head.get(b"upgrade", b"").lower() == b"websocket"

    @property
    def abandoned(self) -> bool:
        """Return whether its client is gone, and its request is to go, too."""
        return self.connection.gone and not self.outlives_client

    def when_abandoned(self, then: Callable[[], None]) -> None:
        """Have *then* called, in the place of what was to be, when it is `abandoned`, unless it is already."""
        self.connection.on_gone = None if self.outlives_client else then

    async def start(self, status: int, headers: RawHeaders) -> None:
        """Send status and headers."""
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers + self.cors})

    async def body(self, chunk: bytes, *, last: bool) -> None:
        """Send a part of the body; waits while the client does not read (`server.send_timeout` bounds that)."""
        await self._send({"type": "http.response.body", "body": chunk, "more_body": not last})

    async def answer(self, status: int, headers: RawHeaders, body: bytes) -> None:
        """Send a whole answer."""
        await self.start(status, headers)
        await self.body(body, last=True)

    async def answer_json(self, status: int, body: Any, headers: RawHeaders | None = None) -> None:
        """Send *body*, of the router's own making, as JSON."""
        content = json.dumps(body).encode()
        own = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(content)).encode()),
            (ORIGIN, b"router"),
            (REQUEST_ID, self.request.encode()),
        ]
        await self.answer(status, [*own, *(headers or [])], content)

    async def send_own(self, message: Message) -> None:
        """Send an ASGI message of an app of our own, with the headers that every answer gets."""
        if message["type"] == "http.response.start":
            receipt = [(ORIGIN, b"router"), (REQUEST_ID, self.request.encode())]
            await self.start(message["status"], [*message["headers"], *receipt])
        else:
            await self._send(message)

    async def refuse(self, error: RequestError) -> None:
        """Answer with *error*. The connection ends if the client may still be sending a body that nobody wants."""
        headers, body = problem(error, self.request, openai=self.scope["path"].startswith("/v1/"))
        if not self._body_pending():
            await self.answer(error.status, headers, body)
            return
        await self.start(error.status, [*headers, (b"connection", b"close")])
        await self.body(body, last=False)
        await self._linger()
        await self.body(b"", last=True)

    def _body_pending(self) -> bool:
        announced = self.head.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in self.head
        return announced and not self.body_read

    async def _linger(self) -> None:
        """Read what is still coming. Closing at once would be a reset that destroys the answer on its way."""
        if self.head.get(b"expect", b"").lower() == b"100-continue" and not self.held_bytes:
            return  # the client waits for our word before it sends its body
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while (await self.receive()).get("more_body", False):
                    pass
