"""Where every request enters: guarded, then answered by ourselves or handed to the app. Raw ASGI, for speed."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeAlias

from starlette.types import ASGIApp, Receive, Scope, Send

from falctl.errors import (
    BadRequestError,
    ClientGoneError,
    NotFoundError,
    QueueFullError,
    RequestError,
    UnavailableError,
)
from falctl.router.edge.call import Call
from falctl.router.edge.guard import Guard
from falctl.router.own.ledger import Ledger
from falctl.wire import RESERVED_PREFIXES

log = logging.getLogger(__name__)

_RESERVED: Final = frozenset(prefix.strip("/") for prefix in RESERVED_PREFIXES)
_PARTS_MAX: Final = 3

Room: TypeAlias = Callable[[Call], Awaitable[None]]
"""Answers every request under one prefix of the paths; raises RequestError, nothing being sent."""


class Edge:
    """The ASGI app of the router. ``guard`` is exchanged by a reload."""

    def __init__(self, guard: Guard, *, rooms: Mapping[str, Room], bare: Room, ledger: Ledger) -> None:
        """
        *rooms* by the prefix that each answers, without slashes around it, of up to three parts: "fal/rest/tokens".

        Of several the longest answers; *bare* answers every path that is not kept for us.
        """
        self.guard = guard
        self._bare = bare
        self.rooms = dict(rooms)
        self._ledger = ledger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = Call(scope, receive, send)
        try:
            if await self.guard.admit(call):
                await self.route(call)
        except ClientGoneError:
            call.connection.break_off()
        except RequestError as error:
            if isinstance(error, QueueFullError | UnavailableError):
                self._ledger.refuse()
            await call.refuse(error)
        except Exception:
            log.exception("request.failed request=%s path=%r", call.request, scope["path"])
            if call.started:
                call.connection.break_off()
            else:
                await call.refuse(RequestError("falctl failed to handle this request; its log says why"))
        if log.isEnabledFor(logging.DEBUG):
            log.debug(
                "request.done request=%s method=%s path=%r", call.request, scope["method"], scope["path"]
            )

    async def route(self, call: Call) -> None:
        """
        Answer *call*, which may have passed the guard under another path.

        Raises:
            RequestError: it is refused, and nothing has been sent.
        """
        path: str = call.scope["path"]
        if not path.startswith("/"):
            msg = f"not a path: {path}"
            raise BadRequestError(msg)
        parts = path.split("/", _PARTS_MAX + 1)[1 : _PARTS_MAX + 1]
        reads = call.scope["method"] in {"GET", "HEAD"} and not call.wants_websocket
        prefixes = ["/".join(parts[:size]) for size in range(len(parts), 0, -1)]
        room = next((self.rooms[prefix] for prefix in prefixes if prefix in self.rooms), None)
        if room is not None:
            await room(call)
        elif not _RESERVED.isdisjoint(prefixes) or (path == "/" and reads):
            raise NotFoundError(_kept(parts[0]))
        else:
            await self._bare(call)


def own_room(routes: ASGIApp) -> Room:
    """Return the room whose requests *routes*, an ASGI application of our own, answers."""

    async def serve(call: Call) -> None:
        call.body_read = True  # the connection reads on by itself behind the answer
        await routes(call.scope, call.receive, call.send_own)

    return serve


def _kept(first: str) -> str:
    if not first:
        return "GET / is kept for a page of falctl's own; the app is called by POST, and GET /docs says how"
    return f"/{first} is kept for a later version of falctl; apps cannot be called there"
