"""A host's side of a websocket, over aiohttp."""

from __future__ import annotations

import asyncio
from typing import Final

import aiohttp
from aiohttp import WSMsgType

from falctl.router.edge.answers import RawHeaders
from falctl.router.edge.client_socket import LOST, NO_CODE, Closed, GoneError, Piece

_CLOSE_WITHIN_S: Final = 5.0
_OVER: Final = frozenset({WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR})
_GONE: Final = 1001


class Dialogue:
    """A websocket that a host has accepted."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse[bool], headers: RawHeaders) -> None:
        self._socket = socket
        self.headers = headers
        """Of the answer by which it was accepted."""
        self.subprotocol = socket.protocol

    async def next(self) -> Piece | Closed:
        """Return the next message, or how the host has ended."""
        message = await self._socket.receive()
        match message.type:
            case WSMsgType.TEXT | WSMsgType.BINARY:
                piece: Piece = message.data
                return piece
            case WSMsgType.CLOSE:
                return Closed(message.data, str(message.extra or ""))
            case _:
                return Closed(LOST)

    async def put(self, piece: Piece) -> None:
        """Send a message, as soon as the host has read enough of those before. Raises GoneError."""
        kind = WSMsgType.TEXT if isinstance(piece, str) else WSMsgType.BINARY
        data = piece.encode() if isinstance(piece, str) else piece
        try:
            await self._socket.send_frame(data, kind)
        except (aiohttp.ClientError, OSError) as error:
            raise GoneError from error

    async def end(self, closed: Closed) -> None:
        """Close as the client has closed, and be done."""
        try:
            async with asyncio.timeout(_CLOSE_WITHIN_S):
                if closed.code == NO_CODE:
                    await self._socket.send_frame(b"", WSMsgType.CLOSE)
                    while (await self._socket.receive()).type not in _OVER:
                        pass
                else:
                    code = _GONE if closed.code == LOST else closed.code
                    await self._socket.close(code=code, message=closed.reason.encode())
        except (aiohttp.ClientError, OSError, TimeoutError):
            await self._socket.close()
