"""
One websocket of the app: our headers on its way in, its slot given back on its way out.

It holds a slot from its handshake to its end, and has no time limit: it may idle for ever. What the app still works on
is looked at in two places. A function that runs for it on an app thread is timed like a request (`Ticket.since`). When
the runner is to go, it is closed (1001) once it is quiet: the app has had the last word a moment ago, and computes
nothing; `_LEAVE_WITHIN_S` later in any case.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from starlette.types import Message, Receive, Scope, Send

from falctl.clock import monotonic_s
from falctl.errors import RequestError
from falctl.host.answer import sendable_headers
from falctl.host.failures import render
from falctl.host.keeper import Keeper
from falctl.host.ticket import Ticket
from falctl.tasks import spawn
from falctl.wire import H_HINTS

log = logging.getLogger(__name__)

GOING_AWAY: Final = 1001
FAILED: Final = 1011
REASON_BYTES_MAX: Final = 123
"""RFC 6455, 5.5: a control frame holds 125 bytes, two of which are the code."""

END_WITHIN_S: Final = 5.0
"""An app that has been told of its websocket's end gets this long to end by itself; then its code is cancelled."""
_QUIET_S: Final = 1.0
_LEAVE_WITHIN_S: Final = 20.0
_LOOK_S: Final = 0.1
_HINTS_PAUSE_S: Final = 1.0
"""Shortest pause between two questions for hints while a websocket lasts."""


class RefusedError(RequestError):
    """The app closed a websocket instead of accepting it."""

    status, error_type = 403, "forbidden"


class Conversation:
    """What the app receives and sends on one websocket."""

    def __init__(self, ticket: Ticket, receive: Receive, send: Send, *, keeper: Keeper) -> None:
        self._ticket = ticket
        self._receive = receive
        self._send = send
        self._keeper = keeper
        self._accepted = False
        self.closed = False
        """Nothing more can be sent."""
        self._apps_turn = True
        """The client has spoken last."""
        self._moved_at = self._asked_at = monotonic_s()

    async def receive(self) -> Message:
        """Return the next message for the app."""
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            self.closed = True
        elif message["type"] == "websocket.receive":
            self._move(apps_turn=True)
        return message

    async def send(self, message: Message) -> None:
        """
        Take one ASGI message of the app.

        Raises:
            OSError: the websocket has ended; its app should, too.
            UnsendableError: it accepts or refuses with a header that cannot be sent.
        """
        kind = message["type"]
        if self.closed:
            if kind == "websocket.close":
                return
            msg = "this websocket has ended"
            raise OSError(msg)
        if kind == "websocket.close":
            await self._close(message)
        elif kind == "websocket.http.response.body":
            await self._refuse(message)
        elif kind == "websocket.accept":
            accepted = {**message, "headers": self._headers(message)}
            self._accepted = True
            self._move(apps_turn=False)
            await self._send(accepted)
        elif kind == "websocket.http.response.start":
            await self._send({**message, "headers": sendable_headers(message.get("headers", ()))})
        else:
            if kind == "websocket.send":
                self._move(apps_turn=False)
            await self._send(message)

    async def finish(self) -> None:
        """The app has returned: close what it has left open."""
        if not self.closed:
            await self.send({"type": "websocket.close", "code": 1000})

    async def fail(self, error: RequestError) -> None:
        """Tell the client of *error*, as an answer where the app has not accepted yet, else by a close."""
        if self.closed:
            return
        if self._accepted:
            await self.send({"type": "websocket.close", "code": FAILED, "reason": _reason(error.detail)})
        else:
            await render(error)(_SCOPE, self._receive, self.send)

    async def leave_with_the_runner(self) -> None:
        """Return when this websocket is over; close it when it is quiet, once the runner is to go."""
        await self._keeper.slots.leaving.wait()
        latest_at = monotonic_s() + _LEAVE_WITHIN_S
        while not (self._quiet or monotonic_s() >= latest_at):  # noqa: ASYNC110 - silence tells nobody that it begins
            await asyncio.sleep(_LOOK_S)
        if not self.closed:
            log.info("websocket.closed request=%s: its runner goes", self._ticket.request)
            await self._send_close(GOING_AWAY, "this runner goes away")
            await end_soon(self._ticket)

    @property
    def _quiet(self) -> bool:
        computes = self._apps_turn or self._ticket.busy_since is not None
        return not computes and monotonic_s() - self._moved_at >= _QUIET_S

    async def _close(self, message: Message) -> None:
        if not self._accepted:
            await self.fail(
                RefusedError("The app did not accept this websocket; perhaps it has none at this path")
            )
            return
        await self._keeper.end(self._ticket)
        await self._send_close(message.get("code", 1000), message.get("reason") or "")

    async def _send_close(self, code: int, reason: str) -> None:
        if not self.closed:  # it may have ended while the hints were asked for
            self.closed = True
            await self._send({"type": "websocket.close", "code": code, "reason": reason})

    async def _refuse(self, message: Message) -> None:
        """Send the body of an answer in place of a websocket."""
        last = not message.get("more_body", False)
        if last:
            self._ticket.failed = True
            await self._keeper.end(self._ticket)
        await self._send(message)
        self.closed = last

    def _headers(self, message: Message) -> list[tuple[bytes, bytes]]:
        headers = sendable_headers(message.get("headers", ()))
        if (hints := self._keeper.hints_header()) is not None:
            headers.append((H_HINTS.encode(), hints))
        return headers

    def _move(self, *, apps_turn: bool) -> None:
        self._apps_turn = apps_turn
        self._moved_at = monotonic_s()
        if apps_turn:
            return
        # What its steps were of has been answered: that there are no more is no stall.
        self._ticket.step = self._ticket.steps = 0
        if self._moved_at - self._asked_at >= _HINTS_PAUSE_S:
            self._asked_at = self._moved_at
            spawn(self._keeper.refresh(self._ticket), name="websocket.hints")


async def end_soon(ticket: Ticket) -> None:
    """Return when *ticket* has ended, which its app has been told to; cancel it after `END_WITHIN_S`."""
    try:
        await asyncio.wait_for(ticket.over.wait(), END_WITHIN_S)
    except TimeoutError:
        ticket.cancel()


def _reason(text: str) -> str:
    return text.encode()[:REASON_BYTES_MAX].decode(errors="ignore")


_SCOPE: Final[Scope] = {"type": "websocket"}
"""All that starlette looks at to send an answer to a websocket's handshake."""
