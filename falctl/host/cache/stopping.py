"""
How a load ends that nobody wants any more: by an error of its own, at its next step, whatever it waits for.

Whoever loads looks at an event; nobody is interrupted. What another thread or runner does for the same bytes goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from falctl.clock import monotonic_s
from falctl.toolkit.cancel import LOOK_S


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


@contextmanager
def holding(lock: threading.Lock, cancelled: threading.Event | None) -> Iterator[None]:
    """Hold *lock* for a block; raises LoadCancelledError if *cancelled* is set before it is free."""
    while not lock.acquire(timeout=LOOK_S):
        stop_if(cancelled)
    try:
        yield
    finally:
        lock.release()


class Move:
    """One move of a component's bytes: how far it is, and whether it is to go on. Thread-safe."""

    def __init__(self, cancelled: threading.Event | None = None) -> None:
        self.cancelled = threading.Event() if cancelled is None else cancelled
        self._lock = threading.Lock()
        self._nbytes = 0

    @property
    def nbytes(self) -> int:
        """Return how many bytes were read or copied, each time that they were counted once."""
        return self._nbytes

    def go_on(self) -> None:
        """Raise LoadCancelledError if it is to stop."""
        stop_if(self.cancelled)

    def count(self, nbytes: int) -> None:
        """Note that *nbytes* more were read, or copied; for chunks of megabytes, as it takes a lock."""
        with self._lock:
            self._nbytes += nbytes

    def went_on(self, nbytes: int) -> None:
        """Count *nbytes*; raise LoadCancelledError if it is to stop."""
        self.count(nbytes)
        self.go_on()

    def restart(self) -> None:
        """Note that what was moved is to be moved once more."""
        self._nbytes = 0
