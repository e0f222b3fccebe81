"""Standard error for a process that must not wait for its reader: Ctrl-S, a pager, a pipe that nobody empties."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import Any, Final, TextIO

HELD_CHARS_MAX: Final = 1 << 20
"""What waits for a reader beyond this is dropped, and how much was dropped is said."""


class Unblocked:
    """
    Stands in for a text stream: `write` only queues, and a daemon thread writes.

    Thread-safe. Everything else (``isatty``, ``encoding``, ``fileno``) is the stream's own.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._texts: deque[str] = deque()
        self._held = 0
        self._dropped = 0
        self._writing = False
        self._news = threading.Condition()
        threading.Thread(target=self._run, name="stderr", daemon=True).start()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Queue *text*; returns at once."""
        with self._news:
            if self._held + len(text) > HELD_CHARS_MAX:
                self._dropped += 1
            else:
                self._texts.append(text)
                self._held += len(text)
            self._news.notify_all()
        return len(text)

    def flush(self) -> None:
        """Do nothing: the thread flushes what it writes."""

    def drain(self, within_s: float) -> None:
        """Wait until everything is written, or for *within_s* seconds: for the last words of a process."""
        with self._news:
            self._news.wait_for(lambda: not (self._texts or self._writing), timeout=within_s)

    def _run(self) -> None:
        while True:
            text = self._next()
            with contextlib.suppress(OSError, ValueError):  # the terminal is gone
                self._stream.write(text)
                self._stream.flush()
            with self._news:
                self._writing = False
                self._news.notify_all()

    def _next(self) -> str:
        with self._news:
            self._news.wait_for(lambda: self._texts)
            text, self._writing = "".join(self._texts), True
            self._texts.clear()
            self._held = 0
            if self._dropped:
                text += f"... {self._dropped} pieces of output dropped: nobody read them\n"
                self._dropped = 0
            return text
