"""Waiting in tests: for a condition, with a deadline, never for a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from falctl.clock import monotonic_s

T = TypeVar("T")


def until(condition: Callable[[], T], *, within_s: float, what: str, every_s: float = 0.02) -> T:
    """Return the first true value of *condition*; AssertionError naming *what* after *within_s* seconds."""
    deadline_at = monotonic_s() + within_s
    pause = threading.Event()
    while True:
        if value := condition():
            return value
        assert monotonic_s() < deadline_at, f"not within {within_s} s: {what}"
        pause.wait(every_s)
