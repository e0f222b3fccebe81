"""
Takes a websocket to a runner, and passes on what either side says until one of them ends.

It is a request like any other until the app has accepted it: guarded, queued, refused with an answer of HTTP, and it
holds its slot until the host says that it has ended. Its client waits for the answer to its handshake meanwhile.
Either side's close goes to the other with its code and reason. A runner that is lost is a close with 1011, a client that
is lost one with 1001 for the app, and the request is cancelled as any other whose client has gone.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final, Protocol
from urllib.parse import unquote_plus

from falctl.core.types import Hint, Wanted
from falctl.router.dispatch.activity import Activity
from falctl.router.dispatch.hint import HINT_CHARS_MAX, wanted_hint
from falctl.router.edge.answers import ORIGIN, REQUEST_ID, RawHeaders
from falctl.router.edge.call import Call
from falctl.router.edge.client_socket import LOST, ClientSocket, Closed, GoneError, Piece
from falctl.router.edge.connection import Connection
from falctl.router.edge.offer import offered_subprotocols
from falctl.router.own.ledger import Ledger
from falctl.router.passing.headers import to_client, to_host
from falctl.router.passing.proxy import Proxy
from falctl.router.passing.reach import Reached, Target, reach
from falctl.router.runners.dialogue import Dialogue
from falctl.router.runners.fleet import FleetLinks
from falctl.router.runners.link import Link
from falctl.router.runners.transport import Incoming, Outgoing
from falctl.tasks import spawn
from falctl.wire import H_RUNNER

log = logging.getLogger(__name__)

_HANDSHAKE: Final = b"sec-websocket-"
_HINT: Final = b"fal_runner_hint="
_RUNNER: Final = H_RUNNER.encode()
_APP_ENDS_WITHIN_S: Final = 15.0
"""An app gets this long to notice that its client has gone before we wonder where its slot is."""


class Side(Protocol):
    """One end of a websocket."""

    async def next(self) -> Piece | Closed:
        """Return the next message, or how this side has ended."""
        ...

    async def put(self, piece: Piece) -> None:
        """Send a message; waits while this side does not read. Raises GoneError."""
        ...


class WebSockets:
    """See the module."""

    def __init__(self, fleet: FleetLinks, proxy: Proxy, *, ledger: Ledger, activity: Activity) -> None:
        self._fleet = fleet
        self._proxy = proxy
        self._ledger = ledger
        self._activity = activity

    async def serve(self, call: Call, target: Target) -> None:
        """
        Serve the websocket that *call* asks for until it has ended.

        Raises:
            RequestError: it was not accepted, and nothing has been sent.
        """
        with self._activity.one():
            offered = offered_subprotocols(call)
            wanted = _wanted(call)
            outgoing = self._outgoing(call, target, wanted)

            async def deliver(link: Link) -> Dialogue | Incoming | None:
                return await link.converse(call.request, outgoing, offered)

            reached: Reached[Dialogue | Incoming] = await reach(
                call, target.app, wanted=wanted, fleet=self._fleet, deliver=deliver
            )
            if wanted is not None:
                self._ledger.begin(hit=reached.dispatch.warm)
            if isinstance(reached.answer, Incoming):
                await self._proxy.answer(call, reached, reached.answer)
            else:
                await self._talk(call, reached, reached.answer)

    def _outgoing(self, call: Call, target: Target, wanted: Wanted | None) -> Outgoing:
        scope = call.scope
        given = [field for field in scope["headers"] if not field[0].startswith(_HANDSHAKE)]
        headers = to_host(given, request=call.request, wanted=wanted, hide=self._proxy.rules.hide)
        query = b"&".join(part for part in scope["query_string"].split(b"&") if not part.startswith(_HINT))
        return Outgoing("GET", target.path, query, headers, b"")

    async def _talk(self, call: Call, reached: Reached[Dialogue | Incoming], host: Dialogue) -> None:
        link = reached.link
        if call.connection.gone:  # it has been cancelled
            await host.end(Closed(LOST))
            link.ended(call.request, within_s=_APP_ENDS_WITHIN_S)
            return
        assert isinstance(call.connection, Connection), "only a client's own request asks for a websocket"
        client, early = call.connection.upgrade()
        call.started = True
        try:
            await client.accept(host.subprotocol, _head(call, reached, host), early=early)
            self._ledger.finish(arrived_at=call.started_at)
            by_client, closed = await _converse(client, host)
        except GoneError:
            by_client, closed = True, Closed(LOST)
        if by_client:
            await self._leave(call, link, host, closed=closed)
        elif closed.code == LOST:
            log.warning("websocket.lost request=%s runner=%d", call.request, link.runner)
            closed = Closed(1011, f"runner {link.runner} was lost while it worked on this request")
        await client.end(closed)
        link.ended(call.request, within_s=_APP_ENDS_WITHIN_S if by_client else 0.0)
        log.debug("websocket.ended request=%s client=%s code=%d", call.request, by_client, closed.code)

    async def _leave(self, call: Call, link: Link, host: Dialogue, *, closed: Closed) -> None:
        await host.end(closed)
        spawn(link.cancel(call.request), name=f"cancel-{call.request}")


def _wanted(call: Call) -> Wanted | None:
    """Return the hint of the header, else of the query: a browser can set no header of a websocket, fal's client neither."""
    if (wanted := wanted_hint(call.head, b"", field="")) is not None:
        return wanted
    parts = call.scope["query_string"].split(b"&")
    found = [part.removeprefix(_HINT) for part in parts if part.startswith(_HINT)]
    hint = unquote_plus(found[0].decode("latin-1")) if found else ""
    return Wanted(Hint(hint), "body") if 0 < len(hint) <= HINT_CHARS_MAX else None


async def _converse(client: ClientSocket, host: Dialogue) -> tuple[bool, Closed]:
    """Pass on what both say; return who was the first to end, True: the client, and how."""
    up = spawn(_pass_on(client, host), name="websocket.up")
    down = spawn(_pass_on(host, client), name="websocket.down")
    try:
        await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        if up.done() and up.result() is None:
            await down  # the host's connection is broken: it may have said why before
        if down.done() and (closed := down.result()) is not None:
            return False, closed
        if not up.done():
            await up  # the client's is
        return True, up.result() or Closed(LOST)
    finally:
        for task in (up, down):
            task.cancel()
        await asyncio.wait({up, down})


async def _pass_on(source: Side, sink: Side) -> Closed | None:
    """Return how *source* has ended; None: *sink* takes nothing any more."""
    try:
        while not isinstance(piece := await source.next(), Closed):
            await sink.put(piece)
    except GoneError:
        return None
    return piece


def _head(call: Call, reached: Reached[Dialogue | Incoming], host: Dialogue) -> RawHeaders:
    headers = [f for f in to_client(host.headers, status=101) if not f[0].startswith(_HANDSHAKE)]
    runner = str(reached.dispatch.runner).encode()
    receipt = [(REQUEST_ID, call.request.encode()), (ORIGIN, b"app"), (_RUNNER, runner)]
    return [*headers, *receipt, *call.cors]
