"""What fal's platform makes of an app's answers: which of them end the runner, and which requests it refuses."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from falctl.errors import BadRequestError
from falctl.host.failures import answer_error, render
from falctl.host.telling import from_the_app
from falctl.host.ticket import CURRENT
from falctl.toolkit.out_of_memory import runs_out_of_memory
from falctl.wire import H_ERROR_TYPE

log = logging.getLogger(__name__)

_ENDS_RUNNER: Final = 503
"""fal's rule: one answer 503 ends the runner that gave it."""
_STOP: Final = b"x-fal-stop-runner"
"""By which an app says whether this answer ends its runner; for the platform, so no client sees it."""
_CHECK: Final = b"x-fal-runner-health-check"
"""By which an app asks for its health check."""
_UPLOAD_POLICY: Final = b"x-app-fal-upload-policy"
_OF_GPUS: Final = ("cuda", "cudnn", "nvml", "nccl", "cublas", "cufft", "cusolver", "cusparse", "triton")
"""An unexpected error whose text holds one of these is the GPU's: the SDK's rule, however crude."""


async def answer_unexpected(request: Request, error: Exception) -> Response:
    """Return the answer to an error that the app did not mean for its client."""
    _ungroup(error)
    if runs_out_of_memory(error) or not _names_a_gpu(error):
        return await answer_error(request, error)
    ticket = CURRENT.get()
    log.error("request.failed request=%s", ticket.request if ticket else "-", exc_info=from_the_app(error))
    body = {"detail": "GPU error", "error_type": "runner_server_error"}
    return JSONResponse(body, _ENDS_RUNNER, {H_ERROR_TYPE: "runner_server_error"})


def _names_a_gpu(error: Exception) -> bool:
    return any(word in str(error).lower() for word in _OF_GPUS)


def _ungroup(error: Exception) -> None:
    """Forget the group in which starlette's middlewares raised *error* a first time: the log would tell it twice."""
    if isinstance(error.__cause__, BaseExceptionGroup):
        error.__cause__ = None
    if isinstance(error.__context__, BaseExceptionGroup):
        error.__context__ = None


class FalAnswers:
    """An ASGI application around the SDK's."""

    def __init__(self, web: ASGIApp) -> None:
        self._web = web
        self.wants_check: asyncio.Event | None = None
        """Set when an answer asks for the app's health check."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if any(name == _UPLOAD_POLICY for name, _ in scope["headers"]):
            msg = "x-app-fal-upload-policy is not served here: what an app stores stays on this machine"
            await render(BadRequestError(msg))(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await self._converse(scope, receive, send)
            return
        await self._web(scope, receive, _Outgoing(send, self.wants_check).send)

    async def _converse(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._web(scope, receive, send)
        except Exception as error:
            if (ticket := CURRENT.get()) is not None and (runs_out_of_memory(error) or _names_a_gpu(error)):
                ticket.ends_runner = True
            raise


class _Outgoing:
    """
    One answer of the SDK's application.

    Its middlewares send every body with a promise of more, and an empty last part after it. A body of known length is
    whole before that, and must be known to be, so that the slot is free and the hints are new when its bytes leave.
    """

    def __init__(self, send: Send, wants_check: asyncio.Event | None) -> None:
        self._send = send
        self._wants_check = wants_check
        self._missing_bytes: int | None = None
        self._whole = False
        self._asks = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._asks = any(name.lower() == _CHECK for name, _ in message["headers"])
            await self._send(_for_client(message))
            self._missing_bytes = _length(message)
            return
        if self._whole:
            return
        if self._missing_bytes is not None:
            self._missing_bytes -= len(message.get("body", b""))
            self._whole = self._missing_bytes <= 0
        await self._send({**message, "more_body": False} if self._whole else message)
        if self._asks and self._wants_check is not None and (self._whole or not message.get("more_body")):
            self._wants_check.set()  # now that this answer is out: it should not end with its runner


def _length(head: Message) -> int | None:
    lengths = [value for name, value in head["headers"] if name.lower() == b"content-length"]
    return int(lengths[0]) if lengths and lengths[0].isdigit() else None


def _for_client(head: Message) -> Message:
    said = {value.strip().lower() for name, value in head["headers"] if name.lower() == _STOP}
    ends = b"true" in said or (head["status"] == _ENDS_RUNNER and b"false" not in said)
    if ends and (ticket := CURRENT.get()) is not None:
        ticket.ends_runner = True
    return {**head, "headers": [(n, v) for n, v in head["headers"] if n.lower() not in (_STOP, _CHECK)]}
