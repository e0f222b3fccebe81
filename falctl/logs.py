"""Set up logging for one of our processes: one line per committed change, on standard error."""

from __future__ import annotations

import logging
import sys
from typing import Final, TextIO

FORMAT: Final = "%(asctime)s %(levelname)-7s %(message)s"


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at that moment: a progress display puts itself in between for a while."""

    def __init__(self, to: TextIO | None) -> None:
        self._to = to
        super().__init__()

    @property
    def stream(self) -> TextIO:
        return self._to or sys.stderr

    @stream.setter
    def stream(self, _: TextIO) -> None:
        """Ignore what the base class wants to remember."""


def configure(level: str = "INFO", *, to: TextIO | None = None) -> None:
    """Send records of *level* and above to *to*, by default standard error; the supervisor prefixes a child's lines."""
    handler = _Stderr(to)
    handler.setFormatter(logging.Formatter(FORMAT, datefmt="%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("asyncio", "aiohttp.access", "uvicorn.access", "httpx", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
