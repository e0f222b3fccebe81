"""
Standard output and error of the app's Python code, and its logging, by the request that runs.

`sys.stdout` and `sys.stderr` stay what they are to an app, text streams over a buffer with a file descriptor; only the
raw stream at the bottom is ours. It writes on as before, and then tells the logbook what was written by whom: the
request of the running context, or, where a runner has one slot, whoever holds it, so that plain threads count, too.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import Any, BinaryIO, Final, TextIO, cast

from falctl.host.prints.aside import is_aside
from falctl.host.prints.logbook import Logbook
from falctl.host.prints.native import NativeOutput
from falctl.host.prints.transcript import Level, Transcript
from falctl.host.ticket import CURRENT, Slots
from falctl.lifeline import NativeFds

_LEVELS: Final[tuple[tuple[int, Level], ...]] = (
    (logging.ERROR, "ERROR"),
    (logging.WARNING, "WARN"),
    (logging.INFO, "INFO"),
    (0, "DEBUG"),
)


class Capture:
    """Owner of this process's standard streams from `install` on. It has nobody to tell until `attach`."""

    def __init__(self) -> None:
        self._logbook: Logbook | None = None
        self._slots: Slots | None = None
        self._streams: list[_Stream] = []
        self.plain = _text(self._add(2, None))
        """Standard error, for what is no request's: our own log."""

    def install(self) -> None:
        """Take the place of `sys.stdout` and `sys.stderr`; before the app is imported, which may copy them."""
        sys.stdout = _text(self._add(1, "STDOUT"))
        sys.stderr = _text(self._add(2, "STDERR"))
        os.register_at_fork(after_in_child=self._forked)

    def attach(self, logbook: Logbook, slots: Slots, native: NativeFds | None) -> None:
        """Tell *logbook* from now on; take the app's log records, too, and, for one slot, what is not written in Python."""
        self._slots, self._logbook = slots, logbook
        logging.getLogger().addHandler(_Records(self))
        if native is not None and slots.count == 1:
            output = NativeOutput(native, self)
            for stream in self._streams:
                stream.outlet = output.outlets[stream.fileno()]
            output.begin()
            logbook.drain = output.drain

    def hear(self, level: Level, data: bytes) -> None:
        """Tell what was written as *level* in the running context; never raises into the app's `print`."""
        try:
            if (transcript := self._speaker()) is not None and self._logbook is not None:
                self._logbook.hear(transcript, level, data)
        except Exception:  # noqa: BLE001, S110 - to log it would end up here again; the output itself is written
            pass

    def record(self, level: Level, text: str) -> None:
        """Tell a log record of the running context."""
        if (transcript := self._speaker()) is not None and self._logbook is not None:
            self._logbook.say(transcript, level, text)

    def _speaker(self) -> Transcript | None:
        """Return the transcript of the request that the running code serves; None: it serves none, or nobody knows."""
        if self._slots is None or is_aside():
            return None
        ticket = CURRENT.get() or self._slots.sole
        return None if ticket is None else ticket.transcript

    def _add(self, number: int, level: Level | None) -> _Stream:
        stream = _Stream(number, level, self)
        self._streams.append(stream)
        return stream

    def _forked(self) -> None:
        """Tell nobody in a child that the app has forked: its copy of the lock may be taken for ever."""
        self._logbook = None
        for stream in self._streams:
            stream.outlet = stream.fileno()


class _Stream(io.RawIOBase):
    """The raw bottom of one standard stream."""

    def __init__(self, number: int, level: Level | None, capture: Capture) -> None:
        self.name = "<stdout>" if number == 1 else "<stderr>"
        self._number = number
        self.outlet = number
        """Where to write: its own number, but for a process whose descriptors have been redirected."""
        self._level = level
        self._capture = capture

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self.outlet)

    def write(self, data: Any, /) -> int:
        written = bytes(data)
        rest = written
        while rest:
            rest = rest[os.write(self.outlet, rest) :]
        if self._level is not None:
            self._capture.hear(self._level, written)
        return len(written)


def _text(stream: _Stream) -> TextIO:
    """Return the text stream over *stream* as Python makes it where the environment says PYTHONUNBUFFERED, as a child's does."""
    raw = cast("BinaryIO", stream)
    return io.TextIOWrapper(raw, "utf-8", "backslashreplace", newline="\n", write_through=True)


class _Records(logging.Handler):
    """Tells what the app logs; what we log goes to the runner's output alone, but for the app's own failures."""

    def __init__(self, capture: Capture) -> None:
        super().__init__()
        self._capture = capture
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            ours = record.name.partition(".")[0] == "falctl"
            if ours and (not record.exc_info or CURRENT.get() is None):
                return
            level = next(word for least, word in _LEVELS if record.levelno >= least)
            self._capture.record(level, _failure(record) if ours else self.format(record))
        except Exception:  # noqa: BLE001 - as every handler does: it prints what is wrong with the record
            self.handleError(record)


def _failure(record: logging.LogRecord) -> str:
    assert record.exc_info, "only such records"
    return logging.Formatter().formatException(record.exc_info)
