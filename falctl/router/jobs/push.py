"""
Server-sent events about one request, to one client, for as long as there is something to tell.

What is told is what is true when its watch wakes, so that nothing is queued for a slow client. Its text is ASCII: fal's
JavaScript client decodes it piece by piece.
"""

from __future__ import annotations

import json
from typing import Any, Final, Protocol

from falctl.core.types import RequestId
from falctl.errors import NotFoundError
from falctl.router.edge.answers import ORIGIN, REQUEST_ID
from falctl.router.edge.call import Call
from falctl.router.jobs.watch import Watch

KEEP_ALIVE_S: Final = 10.0
"""A stream says something at least this often: fal's JavaScript client takes 15 s of silence for a failure."""
_PING: Final = b": ping\n\n"


class Teller(Protocol):
    """Knows what one client has been told."""

    @property
    def complete(self) -> bool:
        """Return whether it has told all that it ever will."""
        ...

    async def next(self) -> dict[str, Any] | None:
        """Return what has not been told; None: there is nothing. Raises NotFoundError: nor will there be."""
        ...


async def push(call: Call, request: RequestId, teller: Teller, watch: Watch) -> None:
    """
    Answer *call* with what *teller* tells of *request* whenever *watch* wakes, until one of them is over.

    Raises:
        NotFoundError: there is nothing to tell, and nothing has been sent.
    """
    event = _event(await teller.next())
    await call.start(200, _headers(request))
    call.connection.on_gone = watch.end
    if not call.connection.gone and call.scope["method"] != "HEAD":
        await _push(call, event, teller, watch)
    call.connection.on_gone = None
    await call.body(b"", last=True)


async def _push(call: Call, event: bytes, teller: Teller, watch: Watch) -> None:
    while True:
        if event:
            await call.body(event, last=False)
        if watch.over or teller.complete:
            return
        event = _PING
        if await watch.changed(within_s=KEEP_ALIVE_S) and not call.connection.gone:
            try:
                event = _event(await teller.next())
            except NotFoundError:
                return  # it has ended, and its place was wanted at once


def _event(table: dict[str, Any] | None) -> bytes:
    return b"" if table is None else b"data: " + json.dumps(table).encode() + b"\n\n"


def _headers(request: RequestId) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
        (ORIGIN, b"router"),
        (REQUEST_ID, request.encode()),
    ]
