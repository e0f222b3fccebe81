"""What a webhook says: the body that fal documents, made of how a job ended and what its app answered."""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

from falctl.core.types import RequestId
from falctl.router.jobs.records import Ending

PAYLOAD_BYTES_MAX: Final = 10 << 20
"""A larger answer is fetched from the queue: thirty at a time must not fill the router's memory."""

_NOT_JSON: Final = "the app's answer is no JSON; fetch it from the queue by its request_id"
_TOO_LARGE: Final = "the app's answer is over {} bytes; fetch it from the queue by its request_id"


def letter(request: RequestId, ending: Ending, answer: bytes | None, *, problem: dict[str, str]) -> bytes:
    """
    Return the body of the webhook about *request*. Parses all of *answer*: not for an event loop.

    *answer* is None where no app answered; *problem* tells what the result of such a job is.
    """
    payload = json.dumps(problem).encode() if answer is None else answer
    error = _payload_error(payload)
    outcome = ending.outcome
    table: dict[str, Any] = {
        "request_id": request,
        "gateway_request_id": request,
        "status": "OK" if outcome.status < 400 else "ERROR",
    }
    if outcome.status >= 400:
        table["error"] = problem["detail"] if answer is None else f"Invalid status code: {outcome.status}"
    if error:
        return json.dumps(table | {"payload": None, "payload_error": error}).encode()
    # As the app wrote it: a number, for one, would not survive being read and written again.
    return json.dumps(table).encode()[:-1] + b', "payload": ' + payload + b"}"


def _payload_error(payload: bytes) -> str:
    """Return why *payload* cannot be a part of a JSON document; empty: it can."""
    if len(payload) > PAYLOAD_BYTES_MAX:
        return _TOO_LARGE.format(PAYLOAD_BYTES_MAX)
    try:
        json.loads(payload.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _NOT_JSON
    return ""


def _refuse(constant: str) -> NoReturn:
    msg = f"{constant} is no JSON"
    raise ValueError(msg)
