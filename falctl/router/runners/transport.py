"""
The HTTP client between the router and one runner: a narrow interface over aiohttp.

aiohttp's defaults that would break us, each changed here: no total timeout (300 s would end long jobs), no limit
of connections (100), header lines of up to 1 MiB (8 KiB is less than a long list of hints), no decompression, no
redirects, no cookies, no headers of its own, no second try of a GET whose connection broke (the app may have run
it already), and pooled connections that are dropped long before the host would drop them.
"""

from __future__ import annotations

import io
from collections.abc import AsyncGenerator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
from aiohttp import hdrs
from yarl import URL

from falctl.router.edge.answers import RawHeaders
from falctl.router.runners.dialogue import Dialogue
from falctl.wire import EVENTS_PATH

NO_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, connect=None, sock_read=None, sock_connect=None)

HEADER_LINE_BYTES_MAX: Final = 1 << 20
HEADERS_MAX: Final = 1000
READ_BUFFER_BYTES: Final = 256 << 10
"""aiohttp stops reading from the host at twice this."""

POOL_KEEP_S: Final = 60.0
"""Far below the host's keep-alive of 3600 s, so that no request is written to a connection being closed."""

_WHOLE_BYTES_MAX: Final = 1 << 20
"""aiohttp writes larger bodies piece by piece, so that the loop is not blocked (its TOO_LARGE_BYTES_BODY)."""

_AUTO_HEADERS: Final = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")


class UnreachableError(Exception):
    """No connection to the runner could be made: it has seen nothing of the request."""


class LostError(Exception):
    """The connection broke; nobody knows how far the runner came."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request for a runner. ``target`` is path and query as the client wrote them."""

    method: str
    path: bytes
    query: bytes
    headers: list[tuple[str, str]]
    body: bytes


class Incoming:
    """An answer whose headers have arrived. It must be read to its end, or given up with `close`."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers = response.raw_headers

    async def read(self) -> tuple[bytes, bool]:
        """
        Return the bytes that have arrived, waiting for some, and whether they are the last.

        Raises:
            LostError: the connection broke before the end.
        """
        content = self._response.content
        try:
            return await content.readany(), content.at_eof()
        except (aiohttp.ClientError, OSError) as error:
            raise LostError(str(error)) from error

    def close(self) -> None:
        """Give the answer up; its connection is closed unless it has been read to the end."""
        self._response.close()


class _RefusedError(Exception):
    """What was to be a websocket was answered."""

    def __init__(self, incoming: Incoming) -> None:
        super().__init__(incoming.status)
        self.incoming = incoming


_ACCEPTED: Final[ContextVar[RawHeaders]] = ContextVar("accepted")
"""The headers of the answer by which a host has accepted the websocket that this task asked for."""
_SWITCHES: Final = 101


class Transport:
    """A pool of connections to the Unix socket of one incarnation of one runner."""

    def __init__(self, path: Path) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(path), limit=0, keepalive_timeout=POOL_KEEP_S),
            timeout=NO_TIMEOUT,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=_AUTO_HEADERS,
            read_bufsize=READ_BUFFER_BYTES,
            max_line_size=HEADER_LINE_BYTES_MAX,
            max_field_size=HEADER_LINE_BYTES_MAX,
            max_headers=HEADERS_MAX,
            middlewares=(_once,),
        )

    async def send(self, request: Outgoing) -> Incoming:
        """
        Send *request* and return the answer as soon as its headers are there, however long that takes.

        Raises:
            UnreachableError: it was not sent.
            LostError: it was sent at least in part, and no answer came.
        """
        self._check_open()
        whole = len(request.body) <= _WHOLE_BYTES_MAX
        try:
            response = await self._session.request(
                request.method,
                _url(request),
                headers=request.headers,
                data=(request.body or None) if whole else io.BytesIO(request.body),
                allow_redirects=False,
            )
        except aiohttp.ClientConnectorError as error:
            raise UnreachableError(str(error)) from error
        except (aiohttp.ClientError, OSError) as error:
            raise LostError(str(error)) from error
        return Incoming(response)

    async def converse(self, request: Outgoing, subprotocols: Sequence[str]) -> Dialogue | Incoming:
        """
        Ask for a websocket; return it once it is accepted, or the answer by which it is not, however long that takes.

        Raises:
            UnreachableError, LostError: as `send`.
        """
        self._check_open()
        try:
            socket = await self._session.ws_connect(
                _url(request), headers=request.headers, protocols=subprotocols, max_msg_size=0
            )
        except _RefusedError as refused:
            return refused.incoming
        except aiohttp.ClientConnectorError as error:
            raise UnreachableError(str(error)) from error
        except (aiohttp.ClientError, OSError) as error:
            raise LostError(str(error)) from error
        return Dialogue(socket, _ACCEPTED.get())

    async def events(self) -> AsyncGenerator[bytes, None]:
        """
        Yield the bytes of the host's event stream as they come, until it ends.

        Raises:
            UnreachableError, LostError: as `send`.
        """
        incoming = await self.send(Outgoing("GET", EVENTS_PATH.encode(), b"", [], b""))
        try:
            while True:
                chunk, last = await incoming.read()
                yield chunk
                if last:
                    return
        finally:
            incoming.close()

    async def post(self, path: str, body: bytes = b"") -> int:
        """POST *body* to *path*; return the status and forget the answer. Raises UnreachableError, LostError."""
        incoming = await self.send(Outgoing("POST", path.encode(), b"", [], body))
        incoming.close()
        return incoming.status

    async def ask(self, path: str, body: bytes) -> tuple[int, bytes]:
        """POST *body* to *path*; return the status and the whole answer. Raises UnreachableError, LostError."""
        incoming = await self.send(Outgoing("POST", path.encode(), b"", [], body))
        try:
            answer, last = b"", False
            while not last:
                chunk, last = await incoming.read()
                answer += chunk
        finally:
            incoming.close()
        return incoming.status, answer

    async def close(self) -> None:
        """Close every connection, also those in use."""
        await self._session.close()

    def _check_open(self) -> None:
        if self._session.closed:
            msg = "its runner is gone"
            raise UnreachableError(msg)


async def _once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Turn what aiohttp would answer with a second try into what it does not catch."""
    try:
        response = await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise LostError(str(error)) from error
    if hdrs.UPGRADE in request.headers:
        # Whoever asks for a websocket gets nothing of the answer itself, so it is noted on its way.
        if response.status != _SWITCHES:
            raise _RefusedError(Incoming(response))
        _ACCEPTED.set(list(response.raw_headers))
    return response


def _url(request: Outgoing) -> URL:
    path, query = _ascii(request.path), _ascii(request.query)
    return URL.build(scheme="http", host="runner", path=path, query_string=query, encoded=True)


def _ascii(raw: bytes) -> str:
    """Return *raw*, with bytes above ASCII percent-encoded: as they stand, the client would encode them as UTF-8."""
    if raw.isascii():
        return raw.decode("ascii")
    return "".join(chr(byte) if byte < 0x80 else f"%{byte:02X}" for byte in raw)
