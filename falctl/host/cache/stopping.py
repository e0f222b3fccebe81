"""
How a load ends that nobody wants any more: by an error of its own, at its next step, whatever it waits for.

Whoever loads looks at an event; nobody is interrupted. What another thread or runner does for the same bytes goes on.
"""

from __future__ import annotations

import threading
from typing import Final

from falctl.clock import monotonic_s

LOOK_S: Final = 0.05
"""How late who waits hears that it may stop."""


class LoadCancelledError(Exception):
    """The caller's event was set before its bytes were where they should be."""


def stop_if(cancelled: threading.Event | None) -> None:
    """Raise LoadCancelledError if *cancelled* is set; None never is."""
    if cancelled is not None and cancelled.is_set():
        raise LoadCancelledError


def waited(event: threading.Event, timeout_s: float, *, cancelled: threading.Event | None) -> bool:
    """Block until *event*, *cancelled* or *timeout_s*; return whether *event* is set."""
    give_up_at = monotonic_s() + timeout_s
    while not event.wait(min(LOOK_S, max(0.0, give_up_at - monotonic_s()))):
        if monotonic_s() >= give_up_at or (cancelled is not None and cancelled.is_set()):
            return event.is_set()
    return True
