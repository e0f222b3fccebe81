"""Turn what an app raised into the answer its client gets: fal's bodies, and no traceback ever."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from typing import Final

from fastapi.exception_handlers import request_validation_exception_handler
from fastapi.exceptions import RequestValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from falctl.errors import ModelTooLargeError, RequestError
from falctl.host.card_errors import breaks_the_card
from falctl.host.telling import from_the_app, one_line
from falctl.host.ticket import CURRENT
from falctl.toolkit import RequestCancelled
from falctl.toolkit.out_of_memory import runs_out_of_memory
from falctl.wire import H_BOUNCED, H_ERROR_TYPE

log = logging.getLogger(__name__)

_SAID_MAX: Final = 300
"""Characters of what an allocator said: its numbers come first, advice for its author after them."""


class _AppBugError(RequestError):
    """The app raised something that it did not mean for the client."""

    status, error_type = 500, "runner_server_error"


class _OutOfMemoryError(RequestError):
    """The card or the machine had no room for this request now."""

    status, error_type, retryable = 503, "runner_server_error", True


class _CardBrokenError(RequestError):
    """CUDA is unusable in this process from now on, whoever asks."""

    status, error_type, retryable = 503, "runner_server_error", True


class _BusyError(RequestError):
    """No slot is free, or the host drains; the app was not entered."""

    status, error_type, retryable = 503, "runner_scheduling_failure", True


async def answer_error(request: Request, error: Exception) -> Response:
    """Return the answer to *error*; what an author needs to know goes to the log."""
    return render(expected(error))


async def answer_invalid(request: Request, error: Exception) -> Response:
    """Return FastAPI's own 422, without what the client sent where JSON cannot say that: NaN, or half a character."""
    assert isinstance(error, RequestValidationError)
    try:
        return await request_validation_exception_handler(request, error)
    except (ValueError, RecursionError):
        told = [{key: fault[key] for key in ("type", "loc", "msg")} for fault in error.errors()]
        return Response(json.dumps({"detail": told}), 422, media_type="application/json")


def render(error: RequestError) -> Response:
    """Return *error* as fal's body, with its type in the header too."""
    headers = {H_ERROR_TYPE: error.error_type}
    if error.retry_after_s is not None:
        headers["retry-after"] = f"{error.retry_after_s:.0f}"
    body = {"detail": error.detail, "error_type": error.error_type}
    return JSONResponse(body, error.status, headers)


def unsendable(fault: str) -> Response:
    """Return the answer in place of an app's that cannot be sent, and log why."""
    ticket = CURRENT.get()
    log.error("request.failed request=%s: %s", ticket.request if ticket is not None else "-", fault)
    return render(_AppBugError("Internal Server Error"))


def bounced() -> Response:
    """Return the answer to a request that found no slot: the router may send it elsewhere."""
    response = render(_BusyError("This runner has no free slot"))
    response.headers[H_BOUNCED] = "1"
    return response


def least_bytes(error: BaseException, hint: str | None) -> int:
    """
    Return what the model *hint* takes that *error* says to have no room; 0: it says no such thing.

    Of another model that a request uses, which its input may name, the router is to learn nothing: others want *hint*.
    """
    if not isinstance(error, ModelTooLargeError) or error.model != hint:
        return 0
    return error.least_bytes or 0


def _out_of_memory_beside(models: Iterable[str], error: BaseException) -> str:
    names = ", ".join(repr(name) for name in models)
    return (
        f"Out of memory with {names} in use: {one_line(str(error), at_most=_SAID_MAX) or 'no more is known'}. "
        "Every other idle model leaves the device now; a smaller drawing, or the same one again, may fit"
    )


def expected(error: Exception) -> RequestError:
    """Return what the client gets to know of *error*; what an author needs to know goes to the log."""
    if isinstance(error, ClientDisconnect):
        return RequestCancelled()  # nobody reads it
    ticket = CURRENT.get()
    request = ticket.request if ticket is not None else "-"
    if breaks_the_card(error):  # whatever the app made of it
        log.critical(
            "card.broken request=%s: this process cannot use it any more",
            request,
            exc_info=from_the_app(error),
        )
        if ticket is not None:
            ticket.broke_card = True
        return _CardBrokenError("The GPU failed; its runner restarts")
    if isinstance(error, RequestError):
        if ticket is not None:
            ticket.least_bytes = least_bytes(error, ticket.hint)
        if error.__cause__ is not None:
            log.warning(
                "request.refused request=%s status=%d", request, error.status, exc_info=from_the_app(error)
            )
        return error
    if runs_out_of_memory(error):
        log.error("request.out_of_memory request=%s", request, exc_info=from_the_app(error))
        if ticket is not None:
            ticket.ran_out = True
            if ticket.leases:
                return ModelTooLargeError(_out_of_memory_beside(ticket.leases, error))
        return _OutOfMemoryError("Out of memory")
    log.error("request.failed request=%s", request, exc_info=from_the_app(error))
    return _AppBugError("Internal Server Error")
