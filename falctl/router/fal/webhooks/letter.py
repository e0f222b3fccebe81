"""What a webhook says: the body that fal documents, made of how a job ended and what its app answered."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from falctl.core.retries import Outcome
from falctl.core.types import RequestId
from falctl.router.jobs.told import detail_of, problem_of

PAYLOAD_BYTES_MAX: Final = 10 << 20
"""A larger answer is fetched from the queue: thirty at a time must not fill the router's memory."""

_NOT_JSON: Final = "the app's answer is no JSON; fetch it from the queue by its request_id"
_TOO_LARGE: Final = (
    f"the app's answer is over {PAYLOAD_BYTES_MAX} bytes; fetch it from the queue by its request_id"
)


@dataclass(frozen=True, slots=True)
class Ended:
    """A job that is over, as far as its webhook tells."""

    request: RequestId
    outcome: Outcome
    answered: bool
    """By its app, well or not; else the platform says what happened."""
    payload: bytes | None = None
    """The app's answer; None: there is none, or it is over `PAYLOAD_BYTES_MAX`."""


def letter(ended: Ended) -> bytes:
    """Return the body of the webhook. Parses all of the answer: not for an event loop."""
    outcome = ended.outcome
    payload, fault = _payload(ended)
    table: dict[str, Any] = {
        "request_id": ended.request,
        "gateway_request_id": ended.request,
        "status": "OK" if outcome.status < 400 else "ERROR",
    }
    if outcome.status >= 400:
        table["error"] = f"Invalid status code: {outcome.status}" if ended.answered else detail_of(outcome)
    if fault:
        return json.dumps(table | {"payload": None, "payload_error": fault}).encode()
    # As the app wrote it: a number, for one, would not survive being read and written again.
    return json.dumps(table).encode()[:-1] + b', "payload": ' + payload + b"}"


def _payload(ended: Ended) -> tuple[bytes, str]:
    """Return what happened as JSON, and why that cannot be told; empty: it can."""
    if not ended.answered:
        return json.dumps(problem_of(ended.outcome)).encode(), ""
    if ended.payload is None:
        return b"", _TOO_LARGE
    try:
        json.loads(ended.payload.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return b"", _NOT_JSON
    return ended.payload, ""


def _refuse(constant: str) -> NoReturn:
    msg = f"{constant} is no JSON"
    raise ValueError(msg)
