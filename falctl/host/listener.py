"""
Serve HTTP and websockets on the runner's Unix socket: uvicorn's protocols, without its server.

Its server would install signal handlers, stop for a lifespan that we do not have, and could not listen again: when
somebody wipes the state directory, the socket that is listened on stays open but nobody can reach it, so the same
path is bound anew, and requests that run notice nothing.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import urllib.parse
from pathlib import Path
from typing import Any, Final, cast

import httptools
from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from falctl.handshake import handshake

log = logging.getLogger(__name__)

KEEP_ALIVE_S: Final = 3600
"""Longer than the router keeps an idle connection, or a request could meet a connection that we are closing."""
BACKLOG: Final = 2048
GONE: Final = "gone"
"""Under this key of ``scope["state"]`` a websocket finds the event that its connection is lost."""
_UNFINISHED: Final = "ASGI callable returned without completing response."


class Listener:
    """Listens on *path* for *app*."""

    def __init__(self, app: ASGIApp, path: Path) -> None:
        self._path = path
        self._server: asyncio.Server | None = None
        self._state = ServerState()
        self._config = Config(
            cast("Any", app),  # uvicorn types the ASGI messages one by one, starlette does not
            http=HttpToolsProtocol,
            ws=WebSocketsSansIOProtocol,
            ws_max_size=sys.maxsize,  # the router has counted
            ws_per_message_deflate=False,
            ws_ping_interval=None,  # between two processes of one machine, a broken connection is a fact
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        self._config.load()
        uvicorns = logging.getLogger("uvicorn.error")
        uvicorns.addFilter(_is_news)
        uvicorns.setLevel(logging.WARNING)  # it tells of every websocket

    async def listen(self) -> None:
        """Bind the path, in place of what stood there, and accept from now on. Raises OSError."""
        former, self._server = (
            self._server,
            await asyncio.get_running_loop().create_unix_server(
                self._protocol, sock=_bind(self._path), backlog=BACKLOG
            ),
        )
        if former is not None:
            former.close()

    async def check(self) -> None:
        """Listen again if the socket's file has gone."""
        if self._path.exists():
            return
        try:
            await self.listen()
        except OSError as error:
            log.warning("socket.lost path=%s error=%s", self._path, error)
        else:
            log.warning("socket.restored path=%s", self._path)

    def close(self) -> None:
        """Accept nothing more and remove the socket's file."""
        if self._server is not None:
            self._server.close()
        self._path.unlink(missing_ok=True)

    def _protocol(self) -> HttpToolsProtocol:
        app_state: dict[str, Any] = {}
        return _Connection(self._config, self._state, app_state)


class _Connection(HttpToolsProtocol):
    def handle_websocket_upgrade(self) -> None:
        self.connections.discard(self)
        socket = _Socket(self.config, self.server_state, self.app_state)
        socket.connection_made(self.transport)
        socket.data_received(handshake(self.headers))
        self.transport.set_protocol(socket)
        if not socket.close_sent:  # the handshake is good: its task will begin with this
            url = httptools.parse_url(self.url)
            socket.scope["raw_path"] = url.path
            socket.scope["path"] = urllib.parse.unquote(url.path.decode("ascii"))
            socket.scope["query_string"] = url.query or b""
            socket.scope["headers"] = self.headers
            socket.scope["state"][GONE] = socket.gone


class _Socket(WebSocketsSansIOProtocol):
    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any]) -> None:
        super().__init__(config, server_state, app_state)
        self.gone = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()
        super().connection_lost(exc)


def _bind(path: Path) -> socket.socket:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(str(path))
        path.chmod(0o600)
        listening.setblocking(False)  # noqa: FBT003 - the signature of the socket module
    except OSError:
        listening.close()
        raise
    return listening


def _is_news(record: logging.LogRecord) -> bool:
    """Return False for a connection that we break on purpose; `gate` has said so."""
    return record.msg != _UNFINISHED
