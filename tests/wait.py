"""Waiting in tests: for a condition, with a deadline, never for a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, TypeVar

from falctl.clock import monotonic_s

T = TypeVar("T")

PATIENCE_S: Final = 60.0
"""No wait of a test is given up before: what takes a moment here takes a minute where ten others want the core."""


def until(condition: Callable[[], T], *, within_s: float, what: str, every_s: float = 0.02) -> T:
    """
    Return the first true value of *condition*; AssertionError naming *what* after *within_s* seconds.

    A wait is no measurement: less than `PATIENCE_S` is taken for that.
    """
    within_s = max(within_s, PATIENCE_S)
    deadline_at = monotonic_s() + within_s
    pause = threading.Event()
    while True:
        if value := condition():
            return value
        assert monotonic_s() < deadline_at, f"not within {within_s} s: {what}"
        pause.wait(every_s)
