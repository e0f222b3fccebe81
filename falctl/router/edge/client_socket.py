"""
A client's side of a websocket: uvicorn's protocol, plus the deadline for writing that it lacks.

A client that blocks what we send for `Limits.send_s`, or leaves a ping unanswered for as long, is cut off; uvicorn asks
every 20 s. What it has not read yet is never more than the transport's buffer and one message: `put` waits.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from falctl.router.edge.answers import RawHeaders
from falctl.router.edge.limits import Limits
from falctl.router.edge.send_deadline import SendDeadline

log = logging.getLogger(__name__)

_UVICORN_S: Final = logging.getLogger(f"{__name__}.uvicorn")
_UVICORN_S.setLevel(logging.CRITICAL)
"""For what uvicorn says of a client's bad frames, with a traceback: whatever a client sends must not fill the log."""

GOING_AWAY: Final = 1001
NO_CODE: Final = 1005
"""A close that names no code; never sent as one."""
LOST: Final = 1006
"""The connection broke without a close; never sent."""

Piece: TypeAlias = str | bytes
"""A message: text or binary."""


@dataclass(frozen=True, slots=True)
class Closed:
    """How one side has ended."""

    code: int
    reason: str = ""


class GoneError(Exception):
    """Nothing can be sent to this side any more."""


class ClientSocket(WebSocketsSansIOProtocol):
    """Lives from its handshake, which must be good, to `end`."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        *,
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        config.ws_max_size = limits.message_bytes
        super().__init__(config, server_state, {}, loop)
        self.app: Any = self._last  # in place of the configuration's
        self.logger = _UVICORN_S
        self.ping_timeout = limits.send_s
        self._send_s = limits.send_s
        self._send_deadline = SendDeadline(loop, self._cut_off)
        self._over = asyncio.Event()

    async def accept(self, subprotocol: str | None, headers: RawHeaders, *, early: bytes) -> None:
        """Answer the handshake. *early*: what the client has sent behind it. Raises GoneError."""
        try:
            await self.send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": headers})
        except ClientDisconnected as error:
            raise GoneError from error
        if not self.handshake_complete:
            raise GoneError
        if early:
            self.data_received(early)

    async def next(self) -> Piece | Closed:
        """Return the next message, or how the client has ended."""
        message: Any = await self.receive()
        if message["type"] == "websocket.connect":
            message = await self.receive()
        if message["type"] == "websocket.disconnect":
            return Closed(message["code"], message.get("reason") or "")
        piece: Piece | None = message.get("text")
        return message["bytes"] if piece is None else piece

    async def put(self, piece: Piece) -> None:
        """Send a message, as soon as the client has read enough of those before. Raises GoneError."""
        message: Any = {"type": "websocket.send", "text" if isinstance(piece, str) else "bytes": piece}
        try:
            await self.send(message)
        except (ClientDisconnected, RuntimeError) as error:  # the latter: it has been closed
            raise GoneError from error

    async def end(self, closed: Closed) -> None:
        """Close, if the client has not, and be done."""
        code = 1000 if closed.code in (NO_CODE, LOST) else closed.code
        try:
            await self.send({"type": "websocket.close", "code": code, "reason": closed.reason})
        except (ClientDisconnected, RuntimeError):
            pass  # the client was first
        finally:
            self._over.set()

    def shutdown(self) -> None:
        """End what goes on, because we go; uvicorn would call it a restart."""
        if self.handshake_complete and not self.close_sent:
            self.queue.put_nowait({"type": "websocket.disconnect", "code": GOING_AWAY})
            self.conn.send_close(GOING_AWAY, "falctl is shutting down")
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.close_sent = True
        super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        self._send_deadline.stop()
        self.queue.put_nowait(
            {"type": "websocket.disconnect", "code": LOST}
        )  # heard only if nothing was before
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._send_deadline.start(within_s=self._send_s)

    def resume_writing(self) -> None:
        self._send_deadline.stop()
        super().resume_writing()

    async def _last(self, _: Scope, receive: Receive, send: Send) -> None:
        """Be what uvicorn takes for the application: it closes the connection when this returns."""
        await self._over.wait()

    def _cut_off(self) -> None:
        log.info("client.cut_off client=%s reason=reads_too_slowly", self.client)
        self.transport.abort()
