"""
The terminal while the live view has it: keys without echo, signals as events, the end of falctl as one more.

Signals are read from a pipe, so that none arrives in the middle of a frame: a handler that raised there would
leave half an escape sequence on the screen and a terminal that nobody puts back.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
from types import FrameType, TracebackType
from typing import Final, Literal, Self

Event = Literal["tick", "resized", "left", "suspended", "ended"]
"""What ended a wait: nothing, a new size, the person, Ctrl-Z, or the process that is watched."""

SIGNALS: Final[dict[int, Event]] = {
    signal.SIGINT: "left",
    signal.SIGTERM: "left",
    signal.SIGTSTP: "suspended",
    signal.SIGWINCH: "resized",
    signal.SIGCONT: "resized",
}
URGENCY: Final[tuple[Event, ...]] = ("left", "ended", "suspended", "resized", "tick")


class Terminal:
    """
    Takes the keyboard and the signals for one ``with`` block and gives both back as they were.

    Only in the main thread. A standard input that is no terminal, or not ours to read, is left alone.
    """

    def __init__(self, *, ended_fd: int | None) -> None:
        self._ended_fd = ended_fd
        self._stdin = sys.stdin.fileno() if _may_read_keys() else None
        self._modes: list[int | list[bytes | int]] | None = None
        self._handlers: dict[int, object] = {}
        self._pipe = (-1, -1)
        self._wakeup_before = -1

    def __enter__(self) -> Self:
        self._pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup_before = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        for number in SIGNALS:
            self._handlers[number] = signal.signal(number, _noted)
        if self._stdin is not None:
            self._modes = termios.tcgetattr(self._stdin)
            quiet = termios.tcgetattr(self._stdin)
            quiet[3] &= ~(termios.ECHO | termios.ICANON)
            termios.tcsetattr(self._stdin, termios.TCSADRAIN, quiet)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._stdin is not None and self._modes is not None:
            termios.tcsetattr(self._stdin, termios.TCSAFLUSH, self._modes)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal() itself returned
        signal.set_wakeup_fd(self._wakeup_before)
        for end in self._pipe:
            os.close(end)

    def wait(self, timeout_s: float) -> Event:
        """Block for at most *timeout_s* seconds; return the most urgent thing that happened."""
        watched = [fd for fd in (self._pipe[0], self._stdin, self._ended_fd) if fd is not None]
        readable, _, _ = select.select(watched, [], [], timeout_s)
        happened: set[Event] = {"tick"}
        if self._pipe[0] in readable:
            happened |= {SIGNALS[number] for number in os.read(self._pipe[0], 64) if number in SIGNALS}
        if self._stdin in readable:
            happened.add(self._key())
        if self._ended_fd in readable:
            happened.add("ended")
        return next(event for event in URGENCY if event in happened)

    def _key(self) -> Event:
        assert self._stdin is not None
        try:
            keys = os.read(self._stdin, 64)
        except OSError:
            keys = b""
        if not keys:  # The terminal is gone; its signal may be on the way, but need not be.
            return "left"
        return "left" if keys in {b"q", b"Q"} else "tick"


def _noted(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the number is in the pipe already."""


def _may_read_keys() -> bool:
    """Return whether standard input is a terminal whose foreground we are; touching another's would stop us."""
    try:
        fd = sys.stdin.fileno()
        return os.isatty(fd) and os.tcgetpgrp(fd) == os.getpgrp()
    except (OSError, ValueError):
        return False
