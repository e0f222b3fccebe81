"""
Run a command in a terminal of a given size and print the screen as text: the picture in README is made by this.

    python -m tools.capture_status --columns 120 --rows 30 --after 3 -- falctl status

The command gets a real pseudo-terminal; what it draws goes into a terminal in memory (pyte, of the test extra).
After ``--after`` seconds the screen is printed and the command is interrupted as by Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import select
import subprocess
import sys
import termios
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Self

import pyte

from falctl.clock import monotonic_s

CTRL_C: Final = b"\x03"
EXIT_WITHIN_S: Final = 60.0


class PtyScreen:
    """
    A command in a pseudo-terminal of its own, and the screen it draws; use it in a ``with`` block.

    Nothing runs in the background: the screen moves on while one of the waiting methods is called.
    """

    def __init__(
        self, command: Sequence[str], *, columns: int, rows: int, env: Mapping[str, str] | None = None
    ) -> None:
        self.raw = b""
        """Everything the command has written."""
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self.master, self.slave = os.openpty()
        termios.tcsetwinsize(self.slave, (rows, columns))
        self.modes_before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            ["/usr/bin/env", "setsid", "--ctty", *command],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env={**os.environ, "TERM": "xterm-256color", **(env or {})},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)

    @property
    def lines(self) -> list[str]:
        """Return the screen, top to bottom, without spaces at the ends of lines."""
        return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        """Return the screen without the empty lines at its end."""
        return "\n".join(self.lines).rstrip()

    def send(self, keys: bytes) -> None:
        """Type *keys*."""
        os.write(self.master, keys)

    def resize(self, *, columns: int, rows: int) -> None:
        """Give the terminal another size; the kernel tells the command with SIGWINCH."""
        self._screen.resize(rows, columns)
        termios.tcsetwinsize(self.master, (rows, columns))

    def until(self, condition: Callable[[Self], object], *, within_s: float) -> bool:
        """Read the screen until *condition* is true of it; return False when it is not within *within_s* seconds."""
        deadline_at = monotonic_s() + within_s
        while not condition(self):
            if monotonic_s() >= deadline_at:
                return False
            self._read(within_s=0.05)
        return True

    def end(self, *, within_s: float = EXIT_WITHIN_S) -> int | None:
        """Read on until the command has ended; return its exit code, or None when it did not end in time."""
        self.until(lambda _: self.process.poll() is not None, within_s=within_s)
        while self._read(within_s=0.05):
            pass
        return self.process.poll()

    def _read(self, *, within_s: float) -> bool:
        if not select.select([self.master], [], [], within_s)[0]:
            return False
        data = os.read(self.master, 1 << 16)
        self.raw += data
        self._stream.feed(data)
        return bool(data)


def main() -> None:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--columns", type=int, default=120)
    parser.add_argument("--rows", type=int, default=30)
    parser.add_argument("--after", type=float, default=3.0, help="seconds to let it draw")
    parser.add_argument("command", nargs="+", help="after --, the command with its arguments")
    args = parser.parse_args()
    with PtyScreen(args.command, columns=args.columns, rows=args.rows) as screen:
        screen.until(lambda s: s.process.poll() is not None, within_s=args.after)
        sys.stdout.write(f"{screen.text}\n")
        if screen.process.poll() is None:
            screen.send(CTRL_C)
            screen.end()


if __name__ == "__main__":
    main()
