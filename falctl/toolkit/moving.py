"""
The lock of whoever constructs a model or moves parts, in all of this process.

diffusers and accelerate change global state of the process while they construct a model, and fail silently when two do
so at once. Waiting for the device to have room is done without it, since those who are waited for may need it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

LOADING: Final = threading.RLock()

_here = threading.local()


@contextmanager
def moving() -> Iterator[None]:
    """Hold `LOADING` for a block; a lease inside of it, by an app's ``load``, finds out that this thread does."""
    with LOADING:
        outer, _here.loading = getattr(_here, "loading", False), True
        try:
            yield
        finally:
            _here.loading = outer


def is_moving() -> bool:
    """Return whether this thread is in such a block."""
    return getattr(_here, "loading", False)
