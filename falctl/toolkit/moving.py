"""
The lock of whoever constructs a model or moves parts, in all of this process.

diffusers and accelerate change global state of the process while they construct a model, and fail silently when two do
so at once. Waiting for the device to have room is done without it, since those who are waited for may need it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from falctl.clock import monotonic_s
from falctl.toolkit.cancel import LOOK_S, RequestCancelled

LOADING: Final = threading.RLock()

_here = threading.local()


def taken(cancelled: threading.Event | None, *, within_s: float = math.inf) -> bool:
    """
    Take `LOADING`; return False if it was not free *within_s* seconds.

    Raises RequestCancelled if *cancelled* is set before.
    """
    give_up_at = monotonic_s() + within_s
    while not LOADING.acquire(timeout=LOOK_S):
        if cancelled is not None and cancelled.is_set():
            raise RequestCancelled
        if monotonic_s() >= give_up_at:
            return False
    return True


@contextmanager
def moving(cancelled: threading.Event | None = None) -> Iterator[None]:
    """
    Hold `LOADING` for a block; a lease inside of it, by an app's ``load``, finds out that this thread does.

    Raises RequestCancelled if *cancelled* is set before it is free.
    """
    taken(cancelled)
    outer, _here.loading = getattr(_here, "loading", False), True
    try:
        yield
    finally:
        _here.loading = outer
        LOADING.release()


def is_moving() -> bool:
    """Return whether this thread is in such a block."""
    return getattr(_here, "loading", False)
