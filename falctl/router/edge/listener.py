"""The listening socket that the supervisor handed down, and the clients' connections that came out of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from typing import Any, Final

import uvicorn
from uvicorn.server import ServerState

from falctl.router.edge.connection import Connection
from falctl.router.edge.limits import Limits

_POLL_S: Final = 0.02


class Listener:
    """Accepts clients and runs *app* (ASGI 3) for each of their requests."""

    def __init__(self, app: Any, limits: Limits) -> None:
        self._config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",  # `Connection.upgrade` makes them, from this configuration
            ws_per_message_deflate=False,
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
        )
        # Whatever a client sends must not fill the log: uvicorn warns of each request that it cannot parse.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._config.load()
        self._state = ServerState()
        self._limits = limits
        self._servers: list[asyncio.Server] = []

    async def open(self, listening: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Begin to accept clients on *listening*, with *tls* those who speak it."""
        loop = asyncio.get_running_loop()

        def connection() -> Connection:
            return Connection(self._config, self._state, limits=self._limits, loop=loop)

        # Who does not speak TLS is cut off; who says nothing has as long as for a request's headers.
        within_s = self._limits.header_s if tls is not None else None
        server = await loop.create_server(
            connection, sock=listening, backlog=2048, ssl=tls, ssl_handshake_timeout=within_s
        )
        self._servers.append(server)

    async def close(self, *, within_s: float) -> None:
        """Accept nobody more, let running answers end within *within_s*, cut off the rest."""
        for server in self._servers:
            server.close()
        connections = self._state.connections
        for connection in list(connections):
            connection.shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while connections:  # noqa: ASYNC110 - uvicorn's set of connections tells nobody when it is empty
                    await asyncio.sleep(_POLL_S)
        for connection in list(connections):
            if (transport := connection.transport) is not None:
                transport.abort()
