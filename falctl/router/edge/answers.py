"""The one place that renders an error as an HTTP answer: fal's body, fal's headers, ours."""

from __future__ import annotations

import json
from math import ceil
from typing import Any, Final, TypeAlias

from falctl.core.events import Refuse, RefuseCode
from falctl.core.sizes import size_text
from falctl.errors import (
    ClientCancelledError,
    LoadFailedError,
    MethodError,
    ModelTooLargeError,
    ParameterError,
    QueueFullError,
    RequestError,
    StartTimeoutError,
    UnavailableError,
)
from falctl.wire import H_ERROR_TYPE, H_ORIGIN, H_REQUEST_ID

RawHeaders: TypeAlias = list[tuple[bytes, bytes]]

ORIGIN: Final = H_ORIGIN.encode()
REQUEST_ID: Final = H_REQUEST_ID.encode()

_REFUSALS: Final[dict[RefuseCode, tuple[type[RequestError], str]]] = {
    "queue_full": (
        QueueFullError,
        "{waiting} requests wait, as many as queue.max allows; send this one again later, or raise queue.max",
    ),
    "client_queue_full": (
        QueueFullError,
        "{waiting} requests of this client wait, as many as queue.max_per_client allows; "
        "send this one again when some are answered, or raise queue.max_per_client",
    ),
    "model_too_large": (
        ModelTooLargeError,
        "its model takes {size} and fits no card of this fleet; ask for a smaller one, or add a larger card",
    ),
    "pins_leave_no_room": (
        ModelTooLargeError,
        "no runner has room for its model beside those that are pinned: {pinned}; `falctl unpin` one of them",
    ),
    "no_runner": (UnavailableError, "no runner is up and none will be; `falctl status` says why"),
    "draining": (UnavailableError, "falctl is shutting down"),
    "start_timeout": (
        StartTimeoutError,
        "it did not start within its X-Fal-Request-Timeout, or else the app's request_start_timeout",
    ),
    "cancelled": (ClientCancelledError, "the request was cancelled"),
    "bounced_too_often": (UnavailableError, "runners turned this request away again and again"),
}

_OPENAI_KINDS: Final = {429: "rate_limit_error"}
_OPENAI_CODES: Final[dict[int | str, str]] = {
    401: "invalid_api_key",
    429: "rate_limit_exceeded",
    "model_not_allowed": "model_not_found",
}


def refusal(action: Refuse) -> RequestError:
    """Return the error that tells a client of *action*."""
    if action.code == "load_failed":
        assert action.failure is not None, "a runner has said why"
        failure = action.failure
        return LoadFailedError(failure.detail, status=failure.status, error_type=failure.error_type)
    kind, detail = _REFUSALS[action.code]
    told = detail.format(
        waiting=action.waiting, size=size_text(action.size_bytes), pinned=", ".join(action.pinned)
    )
    return kind(told, retry_after_s=action.retry_after_s)


def problem(error: RequestError, request: str, *, openai: bool = False) -> tuple[RawHeaders, bytes]:
    """Return headers and body of the answer to the request of that id, in fal's words or in OpenAI's; the status is *error*'s."""
    said: dict[str, Any] = {"detail": error.detail, "error_type": error.error_type}
    if openai:
        param = error.param if isinstance(error, ParameterError) else None
        said = openai_body(error.detail, status=error.status, code=error.error_type, param=param)
    body = json.dumps(said).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (ORIGIN, b"router"),
        (REQUEST_ID, request.encode()),
        (H_ERROR_TYPE.encode(), error.error_type.encode()),
    ]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(max(ceil(error.retry_after_s), 1)).encode()))
    if error.status == 429:
        headers.append((b"x-fal-needs-retry", b"1"))
    if isinstance(error, StartTimeoutError):
        headers.append((b"x-fal-request-timeout-type", b"user"))
    if isinstance(error, MethodError):
        headers.append((b"allow", ", ".join(error.allowed).encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return headers, body


def openai_body(message: str, *, status: int, code: str | None, param: str | None) -> dict[str, Any]:
    """Return an error as OpenAI's clients read it. What has a name of theirs gets it, else *code*, which is fal's."""
    kind = "server_error" if status >= 500 else _OPENAI_KINDS.get(status, "invalid_request_error")
    named = _OPENAI_CODES.get(status) or _OPENAI_CODES.get(code or "", code)
    return {"error": {"message": message, "type": kind, "param": param, "code": named}}
