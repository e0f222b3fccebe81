"""What `falctl up` tells its user: progress while it starts, one line when it is up or has failed."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any, Final, Protocol

from rich.console import Console
from rich.status import Status

ENV_NOTIFY: Final = "FALCTL_NOTIFY_FD"
"""Descriptor on which a detached `falctl up` tells the one that started it how the start goes."""


class Announcer(Protocol):
    """How the start is told."""

    def progress(self, text: str) -> None:
        """Show where the start is now; replaces what was shown before."""
        ...

    def note(self, line: str) -> None:
        """Print *line* for good."""
        ...

    def done(self, *, exit_code: int | None) -> None:
        """End the start: *exit_code* is None when everything runs."""
        ...


class Terminal:
    """Progress on the user's terminal, or line by line where there is none."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._status: Status | None = None
        self._shown = ""

    def progress(self, text: str) -> None:
        """Show a spinner beside *text*; without a terminal print every new text."""
        if text == self._shown:
            return
        self._shown = text
        if not self._console.is_terminal:
            self._print(text)
            return
        with contextlib.suppress(OSError):  # the terminal is gone, and SIGHUP on its way to us
            if self._status is None:
                self._status = self._console.status(text)
                self._status.start()
            else:
                self._status.update(text)

    def note(self, line: str) -> None:
        """Print *line* above the spinner."""
        self._print(line)

    def done(self, *, exit_code: int | None) -> None:
        """Take the spinner away."""
        del exit_code
        if self._status is not None:
            with contextlib.suppress(OSError):
                self._status.stop()
            self._status = None

    def _print(self, line: str) -> None:
        with contextlib.suppress(OSError):
            self._console.print(line, markup=False, soft_wrap=True)


class Pipe:
    """Progress through a descriptor to the `falctl up -d` that waits for us, which prints it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def progress(self, text: str) -> None:
        """Send *text* on."""
        self._send({"progress": text})

    def note(self, line: str) -> None:
        """Send *line* on, and print it into our own log."""
        self._send({"note": line})
        with contextlib.suppress(OSError):
            sys.stderr.write(line + "\n")

    def done(self, *, exit_code: int | None) -> None:
        """Let the one that waits go."""
        self._send({"done": exit_code})
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _send(self, table: dict[str, Any]) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # who started us was killed: that leaves us running
                os.write(self._fd, json.dumps(table).encode() + b"\n")


def make_announcer() -> Announcer:
    """Return the announcer for this process: a pipe when it was detached, else the terminal."""
    fd = os.environ.pop(ENV_NOTIFY, None)
    return Terminal() if fd is None else Pipe(int(fd))
