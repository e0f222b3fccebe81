"""
How a request that runs is stopped.

fal's convention comes first: an app that has an endpoint ``{path}/cancel`` is asked to stop the request itself, by a POST
there with the request's own id, and answers it with 499. It needs no slot. What still runs `END_WITHIN_S` after that,
or after its websocket was closed, is cancelled; so is any other request, at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Container, Iterable, Mapping

from starlette.types import ASGIApp

from falctl.host.conversation import END_WITHIN_S, end_soon
from falctl.host.inside import post
from falctl.host.ticket import Ticket
from falctl.wire import H_REQUEST_ID

log = logging.getLogger(__name__)


def find_cancels(paths: Iterable[str], *, posts: Container[str]) -> dict[str, str]:
    """Return, by the path of an endpoint among *paths*, that of the one among *posts* which cancels its requests."""
    return {path: cancel for path in paths if (cancel := f"{path.rstrip('/')}/cancel") in posts}


class Canceller:
    """Stops requests of the app *web*; *cancels* is what `find_cancels` has found."""

    def __init__(self, web: ASGIApp, cancels: Mapping[str, str]) -> None:
        self._web = web
        self._cancels = cancels

    async def cancel(self, ticket: Ticket) -> None:
        """Return when *ticket* has been told in every way that there is."""
        path = self._cancels.get(ticket.path)
        if path is not None:
            await self._ask(path, ticket)
        if path is not None or ticket.websocket:
            await end_soon(ticket)
        else:
            ticket.cancel()

    async def _ask(self, path: str, ticket: Ticket) -> None:
        headers = [(H_REQUEST_ID.encode(), ticket.request.encode())]
        try:
            outcome = await asyncio.wait_for(post(self._web, path, headers), END_WITHIN_S)
        except TimeoutError:
            outcome = f"no answer within {END_WITHIN_S:g} s"
        if outcome != 200:
            log.warning("request.cancel_failed request=%s path=%s: %s", ticket.request, path, outcome)
