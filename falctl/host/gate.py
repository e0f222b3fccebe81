"""
The host's front: what is ours is answered here, the app's requests go in one per slot.

`/falctl/*`, GET `/health`, `/openapi.json` and `/docs` take no slot. Everything else does, websockets and a path that the
app does not have too, so that the router sees each request that it dispatched end in the same way.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from falctl.errors import EXIT_CARD_BROKEN
from falctl.host.answer import Answer, UnsendableError, without_ours
from falctl.host.conversation import Conversation, end_soon
from falctl.host.deadline import Deadline, overdue
from falctl.host.ending import end_process
from falctl.host.failures import bounced, expected, render, unsendable
from falctl.host.head import RequestHead, read_head
from falctl.host.keeper import Keeper
from falctl.host.listener import GONE
from falctl.host.loader import OWN_PATHS
from falctl.host.ticket import CURRENT, Ticket
from falctl.tasks import spawn
from falctl.toolkit import RequestCancelled
from falctl.wire import EXIT_RETIRED, H_HINTS

log = logging.getLogger(__name__)

_OURS: Final = b"/falctl/"
_READ: Final = frozenset({"GET", "HEAD"})


class Gate:
    """The ASGI application of a host, around the app's."""

    def __init__(
        self, app: ASGIApp, ours: ASGIApp, keeper: Keeper, request_timeout_s: float | None = None
    ) -> None:
        self._app = app
        self._ours = ours
        self._keeper = keeper
        self._request_timeout_s = request_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "websocket":
            await self._converse(scope, receive, send)
        # As it stands on the wire: a client's "/%66alctl/..." that the router let pass must not become ours here.
        elif scope["raw_path"].startswith(_OURS):
            await self._ours(scope, receive, send)
        elif scope["path"] in OWN_PATHS and scope["method"] in _READ:
            await self._app(scope, receive, self._with_hints(send))
        else:
            await self._answer_slotted(scope, receive, send)

    def _with_hints(self, send: Send) -> Send:
        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = without_ours(message["headers"])
                if (hints := self._keeper.hints_header()) is not None:
                    headers.append((H_HINTS.encode(), hints))
                message = {**message, "headers": headers}
            await send(message)

        return add

    async def _answer_slotted(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = read_head(scope["headers"])
        ticket = self._keeper.admit(head, path=scope["path"])
        if ticket is None:
            await bounced()(scope, receive, send)
            return
        CURRENT.set(ticket)  # this task serves one request, so nobody needs the old value back
        answer = Answer(ticket, send, keeper=self._keeper)
        deadline = Deadline(ticket, answer, self._request_timeout_s)
        try:
            await self._run(_app_scope(scope, head), receive, answer, ticket)
        except asyncio.CancelledError:
            if not ticket.stopping:
                raise
            ticket.task.uncancel()
            await self._answer_cancelled(scope, receive, answer, ticket)
        except Exception:  # noqa: BLE001 - starlette raises again what `answer_error` has logged and answered
            log.debug("request.raised request=%s", ticket.request)
        finally:
            deadline.cancel()
            await self._keeper.end(ticket)
        await self._end_runner(ticket)
        if not answer.complete:
            # Returning here makes the server close the connection without a final chunk, which is what we mean.
            log.info("request.broken request=%s", ticket.request)

    async def _end_runner(self, ticket: Ticket) -> None:
        """End the process, if this request was to be its last."""
        if ticket.broke_card:
            end_process(EXIT_CARD_BROKEN)
        if ticket.ends_runner:
            log.warning("runner.retires request=%s: another process takes its place", ticket.request)
            await self._keeper.slots.wait_idle()  # no new request is let in
            end_process(EXIT_RETIRED)

    async def _converse(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = read_head(scope["headers"])
        ticket = self._keeper.admit(head, path=scope["path"], websocket=True)
        if ticket is None:
            await bounced()(scope, receive, send)
            return
        CURRENT.set(ticket)
        conversation = Conversation(ticket, receive, send, keeper=self._keeper)
        watching = [
            spawn(conversation.leave_with_the_runner(), name="websocket.leave"),
            spawn(_end_when_gone(scope, ticket), name="websocket.gone"),
        ]
        try:
            await self._app(_app_scope(scope, head), conversation.receive, conversation.send)
            await conversation.finish()
        except asyncio.CancelledError:
            if not ticket.stopping:
                raise
            ticket.task.uncancel()
            await conversation.fail(RequestCancelled())
        except Exception as error:  # noqa: BLE001 - the app's code; `expected` logs it
            if not (conversation.closed and isinstance(error, OSError | WebSocketDisconnect)):
                await conversation.fail(expected(error))
        finally:
            for watch in watching:
                watch.cancel()
            await self._keeper.end(ticket)
        await self._end_runner(ticket)

    async def _run(self, scope: Scope, receive: Receive, answer: Answer, ticket: Ticket) -> None:
        body = await _read_body(receive)
        if body is None:
            ticket.gone = True
            return
        spawn(_watch(receive, ticket), name="request.watch")
        unread = [body]

        async def receive_once() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            # The watcher alone hears of the disconnect, and it tells the task by cancelling it.
            await asyncio.get_running_loop().create_future()
            raise AssertionError

        try:
            await self._app(scope, receive_once, answer.send)
        except UnsendableError as error:
            await unsendable(str(error))(scope, receive_once, answer.send)

    async def _answer_cancelled(self, scope: Scope, receive: Receive, answer: Answer, ticket: Ticket) -> None:
        if not (answer.started or ticket.gone):
            answer.drop_head()
            error = overdue() if ticket.overdue else RequestCancelled()
            await render(error)(scope, receive, answer.send)


def _app_scope(scope: Scope, head: RequestHead) -> Scope:
    # 2.4 is the ASGI version whose servers let `send` raise OSError when the client is gone, as `Answer` does;
    # without it starlette watches for the disconnect itself, in a task group that spins while a thread ends.
    return {**scope, "headers": head.headers, "asgi": {**scope["asgi"], "spec_version": "2.4"}}


async def _read_body(receive: Receive) -> bytes | None:
    """Return the whole body; None when the client went before it was complete."""
    chunks = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(chunks)


async def _end_when_gone(scope: Scope, ticket: Ticket) -> None:
    """Have a websocket end whose app does not look at it, so that it does not hear that nobody is there."""
    await scope["state"][GONE].wait()
    await end_soon(ticket)


async def _watch(receive: Receive, ticket: Ticket) -> None:
    """Return when the client is gone or the answer complete; the server says the same for both."""
    while (await receive())["type"] != "http.disconnect":
        pass
    ticket.leave()
