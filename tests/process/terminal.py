"""`falctl up` in the foreground of a real terminal, whose keys the test presses and whose window it closes."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import threading
from typing import Final

from tests.process.on_cpu import Falctl

CTRL_C: Final = b"\x03"

_TAKE_TERMINAL: Final = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"
_CONTROL: Final = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
_NEW_LINE: Final = re.compile(r"[\r\n]+")
"""A spinner goes back to the start of its line; what it is replaced by counts as a line of its own."""


class OnTerminal(Falctl):
    """A `Falctl` whose standard streams are a pseudo terminal, and which leads its session as a shell's job would."""

    prefix: tuple[str, ...] = ()
    """A command that starts the command, such as nohup."""

    def start(self) -> None:
        """Start it on a new terminal."""
        self._master, slave = os.openpty()
        self._closing, self._close = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _TAKE_TERMINAL, *self.prefix, *self._command("up", *self._arguments)],
            cwd=self.cwd,
            env={**self.environ, "TERM": "xterm-256color"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            text=True,
            start_new_session=True,
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read_screen, args=(self._master,), daemon=True)
        self._reader.start()

    def press(self, key: bytes) -> None:
        """Press a key."""
        os.write(self._master, key)

    def close_window(self) -> None:
        """Hang up: the terminal is gone for good."""
        os.write(self._close, b"x")  # a read that is under way would keep the terminal open
        assert self._reader is not None
        self._reader.join()

    def _read_screen(self, master: int) -> None:
        rest = ""
        while True:
            ready, _, _ = select.select([master, self._closing], [], [])
            if self._closing in ready:
                break
            try:
                chunk = os.read(master, 1 << 16)
            except OSError:  # nobody has the terminal open any more
                break
            *lines, rest = _NEW_LINE.split(rest + _CONTROL.sub("", chunk.decode(errors="replace")))
            self.lines += lines
        self.lines.append(rest)
        for fd in (master, self._closing, self._close):
            os.close(fd)
