"""Time as a value that is passed in: the wall clock for a person, a monotonic one for decisions."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def monotonic_s() -> float:
    """Return CLOCK_MONOTONIC in seconds: one clock for every process of this machine since its boot."""
    return time.monotonic()


def monotonic_ns() -> int:
    """Return CLOCK_MONOTONIC in nanoseconds, as it stands in the board's ``*_ns`` fields."""
    return time.monotonic_ns()


def wall_clock() -> datetime:
    """Return now, with the local time zone: for logs, files and people, never for decisions."""
    return datetime.now(tz=UTC).astimezone()


def wall_s() -> float:
    """Return now in seconds since 1970: for what is kept or sent, where a `datetime` would cost too much."""
    return time.time()  # noqa: TID251 - the clock that is meant to be used instead
