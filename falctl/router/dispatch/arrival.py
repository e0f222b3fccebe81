"""What a request says of itself to the scheduler: who sent it, how urgent it is, when it is too late."""

from __future__ import annotations

import hashlib
import math
from typing import Final

from falctl.core.events import Arrived
from falctl.core.types import Priority, Wanted
from falctl.errors import BadRequestError
from falctl.router.edge.call import Call
from falctl.router.passing.lifetime import wanted_lifetime
from falctl.router.passing.options import check_keep_alive, wants_previews

_PRIORITY: Final = b"x-fal-queue-priority"
_START_TIMEOUT: Final = b"x-fal-request-timeout"
_AUTHORIZATION: Final = b"authorization"
_START_TIMEOUT_MIN_S: Final = 0.1
"""fal's own lower bound (fal-client 1.0.3)."""


def arrival(call: Call, wanted: Wanted | None, *, start_timeout_s: float | None = None) -> Arrived:
    """
    Return the event that *call* is. Its app's *start_timeout_s* counts unless it brings one of its own.

    Raises:
        BadRequestError: a header that cannot be followed; names it and the fix.
    """
    wanted_lifetime(call.head)  # the host reads it anew, and the app's SDK does: it must be one
    wants_previews(call.head)  # as this
    check_keep_alive(call.head)  # and this
    return Arrived(
        call.request,
        wanted,
        _party(call),
        priority=_priority(call.head),
        start_by=_start_by(call.head, call.started_at, start_timeout_s),
    )


def _party(call: Call) -> str:
    """Return who shares fairly: an API key, by a hash that gives nothing away, else an address without its port."""
    if (key := call.head.get(_AUTHORIZATION)) is not None:
        return "key " + hashlib.sha256(key).hexdigest()[:8]
    return call.client.rpartition(":")[0]


def _priority(head: dict[bytes, bytes]) -> Priority:
    given = head.get(_PRIORITY, b"normal").strip().lower()
    if given == b"low":
        return "low"
    if given in (b"normal", b""):
        return "normal"
    msg = f"X-Fal-Queue-Priority: {given.decode('latin-1')!r} is neither normal nor low"
    raise BadRequestError(msg)


def _start_by(head: dict[bytes, bytes], now: float, default_s: float | None) -> float | None:
    given = head.get(_START_TIMEOUT)
    if given is None:
        return None if default_s is None else now + default_s
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not _START_TIMEOUT_MIN_S <= seconds < math.inf or b"_" in given:
        msg = f"X-Fal-Request-Timeout: {given.decode('latin-1')!r} is no number of seconds from {_START_TIMEOUT_MIN_S}"
        raise BadRequestError(msg)
    return now + seconds
