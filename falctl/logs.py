"""
Set up logging for one of our processes: one line per committed change, on standard error.

What clients wrote stands in many of them, a model's name for one. It neither begins a line of its own nor steers the
terminal of who reads: of a message every character that is not seen is escaped, of a traceback all but its line ends.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Final, TextIO

FORMAT: Final = "%(asctime)s %(levelname)-7s %(message)s"


class _Formatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        record.message = _seen(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's own name
        return "\n".join(map(_seen, super().formatException(ei).split("\n")))


def _seen(line: str) -> str:
    return line if line.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


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
    handler.setFormatter(_Formatter(FORMAT, datefmt="%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("asyncio", "aiohttp.access", "uvicorn.access", "httpx", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
