"""
One client's connection: uvicorn's HTTP/1.1 protocol, plus the deadlines and limits that it lacks.

- Headers: from the connection's start, and from the first byte of every further request, they must be complete
  within `Limits.header_s`, and be no larger than `HEADERS_BYTES_MAX`.
- Framing: what comes around a body, which are chunk extensions and trailers, has the same limit of size.
- Writing: a client that blocks our answer for `Limits.send_s` is cut off, also after its last byte was written.
- Going: `Connection.on_gone` is called once when the connection is lost, so that nobody needs a task that waits
  for ``http.disconnect``.
- Websockets: a request for one is a request like any other until somebody calls `Connection.upgrade`; what the client
  sends behind it waits until then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, cast

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from falctl.handshake import handshake
from falctl.router.edge.client_socket import ClientSocket
from falctl.router.edge.cork import CorkedTransport
from falctl.router.edge.limits import Limits
from falctl.router.edge.send_deadline import SendDeadline

log = logging.getLogger(__name__)

HEADERS_BYTES_MAX: Final = 64 << 10
"""Of one request: its target, names and values. nginx allows 32 KiB, Node 16 KiB."""

_UPGRADE_HEADERS: Final = frozenset({b"connection", b"upgrade", b"http2-settings"})

_EARLY_BYTES_MAX: Final = 64 << 10
"""What a client may send before its websocket is accepted; RFC 6455 allows it nothing."""

STATE_KEY: Final = "connection"
"""Under this key of ``scope["state"]`` a request finds its `Connection`."""


class Connection(HttpToolsProtocol):
    """See the module. Lives on the event loop, like all of the router."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        *,
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(config, server_state, {}, _loop=loop)
        self.access_log = False
        self.limits = limits
        self.gone = False
        self.on_gone: Callable[[], None] | None = None
        self.active: RequestResponseCycle | None = None
        """The exchange that the app works on; `cycle` is the one that was read last, which may wait behind it."""
        self._header_timer: asyncio.TimerHandle | None = None
        self._send_deadline = SendDeadline(loop, self._cut_off)
        self._header_bytes = 0
        """Received since the last piece of a body, or end of headers or of a message."""
        self._in_trailers = False
        self._early: bytes | None = None
        """What has come behind a request for a websocket; None: there was none."""

    @property
    def has_input(self) -> bool:
        """Return whether ``receive()`` would return at once."""
        return self.active is not None and self.active.message_event.is_set()

    def break_off(self) -> None:
        """Close without completing the answer, so that the client can tell that it is not whole."""
        self.on_gone = None
        if self.active is not None:
            self.active.disconnected = True
            self.active.transport.close()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        self._headers_done()
        self._unset_keepalive_if_required()
        self.resume_writing()
        super().connection_lost(exc)
        if self.on_gone is not None:
            on_gone, self.on_gone = self.on_gone, None
            on_gone()

    def upgrade(self) -> tuple[ClientSocket, bytes]:
        """
        Make a websocket of this connection, whose handshake is good; return it, and what has come early.

        The exchange that the app works on is over: nothing is answered there any more.
        """
        assert self.active is not None, "nobody asked"
        self.on_gone = None
        self.active.disconnected = True
        self._unset_keepalive_if_required()
        self.connections.discard(self)
        socket = ClientSocket(self.config, self.server_state, limits=self.limits, loop=self.loop)
        socket.connection_made(self.transport)
        socket.data_received(handshake(self.active.scope["headers"]))
        self.transport.set_protocol(socket)
        return socket, self._early or b""

    def data_received(self, data: bytes) -> None:
        if self._early is not None:
            self._early += data
            if len(self._early) > _EARLY_BYTES_MAX:
                self.transport.abort()
            return
        self._header_bytes += len(data)
        self._unset_keepalive_if_required()
        self._parse(data)
        if self._header_bytes > HEADERS_BYTES_MAX:
            self._refuse(431, "Request Header Fields Too Large")
        elif self._header_timer is None and (self.active is None or self.active.response_complete):
            self._await_headers()

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self._refuse_unparsed()
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])

    def _decline_upgrade(self, rest: bytes) -> None:
        """Read a request anew as if it had not offered HTTP/2: the parser stops at such an offer, body unread."""
        if self._offers_websocket():
            self.cycle.keep_alive = False  # if it is refused, nothing behind it will be read
            self._early = rest
            return
        lines = [b"%b %b HTTP/1.1" % (self.parser.get_method(), self.url)]
        lines += [b"%b: %b" % header for header in self.headers if header[0] not in _UPGRADE_HEADERS]
        self.parser = httptools.HttpRequestParser(self)
        self._parse(b"\r\n".join([*lines, b"", rest]))

    def _will_be_read_anew(self) -> bool:
        return self.parser.should_upgrade() and not self._offers_websocket()

    def _offers_websocket(self) -> bool:
        upgrade = {value.lower() for name, value in self.headers if name == b"upgrade"}
        options = [value for name, value in self.headers if name == b"connection"]
        return upgrade == {b"websocket"} and b"upgrade" in b",".join(options).lower().replace(
            b" ", b""
        ).split(b",")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"][STATE_KEY] = self
        self._in_trailers = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_trailers:  # they would join the headers that have been checked already
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._will_be_read_anew():
            return
        self._headers_done()
        self._header_bytes = 0
        self._in_trailers = True
        if len(self.url) + sum(len(n) + len(v) for n, v in self.headers) > HEADERS_BYTES_MAX:
            self._header_bytes = HEADERS_BYTES_MAX + 1
            msg = "headers too large"
            raise ValueError(msg)  # makes the parser stop
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self.cycle.response_complete:
            self._header_bytes = 0  # who limits bodies counts this
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._will_be_read_anew():
            self._header_bytes = 0
            super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self.active = cycle
        cycle.transport = CorkedTransport(self.transport, self.loop)  # type: ignore[assignment]
        super()._start_asgi_task(cycle, app)

    def _refuse_unparsed(self) -> None:
        if self._header_bytes > HEADERS_BYTES_MAX:
            self._refuse(431, "Request Header Fields Too Large")
        else:
            self._refuse(400, "Bad Request")

    def pause_writing(self) -> None:
        super().pause_writing()
        self._send_deadline.start(within_s=self.limits.send_s)

    def resume_writing(self) -> None:
        self._send_deadline.stop()
        super().resume_writing()

    def on_response_complete(self) -> None:
        self.on_gone = None
        self.timeout_keep_alive = cast("int", self.limits.keep_alive_s)  # any number will do for call_later
        super().on_response_complete()
        if self.transport.is_closing():
            # What is still in the write buffer must leave within the deadline, too.
            self._send_deadline.start(within_s=self.limits.send_s)

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # close() would wait for a client that reads nothing
        super().timeout_keep_alive_handler()

    def _await_headers(self) -> None:
        self._header_timer = self.loop.call_later(self.limits.header_s, self._headers_overdue)

    def _headers_done(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _headers_overdue(self) -> None:
        self._header_timer = None
        log.debug("client.cut_off client=%s reason=headers", self.client)
        self.transport.abort()

    def _cut_off(self) -> None:
        log.info("client.cut_off client=%s reason=reads_too_slowly", self.client)
        self.transport.abort()

    def _refuse(self, status: int, reason: str) -> None:
        self._headers_done()
        if self._awaits_answer():
            self.transport.write(
                f"HTTP/1.1 {status} {reason}\r\ncontent-length: 0\r\nconnection: close\r\n"
                "x-falctl-origin: router\r\nx-fal-error-type: bad_request\r\n\r\n".encode()
            )
        self.transport.close()

    def _awaits_answer(self) -> bool:
        """Return whether the next answer on this connection is to what is being read."""
        active = self.active
        if active is None or active.response_complete:
            return True
        return active.more_body and not active.response_started
