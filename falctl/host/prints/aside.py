"""What the app prints while it is asked something that is no request's: its hints, a load job, its health."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_ASIDE: ContextVar[bool] = ContextVar("falctl_aside", default=False)


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """Let nothing that this context prints in this block count as a request's."""
    token = _ASIDE.set(True)
    try:
        yield
    finally:
        _ASIDE.reset(token)


def is_aside() -> bool:
    """Return whether the running code is in such a block."""
    return _ASIDE.get()
