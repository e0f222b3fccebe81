"""
Lines out of one stream of bytes, as a person would read them off a terminal that scrolls.

A progress bar writes one line over and over behind carriage returns. Of that line its last state counts, and, so that
somebody who follows sees it move, the state of every `BAR_PAUSE_S`.
"""

from __future__ import annotations

import json
import math
import re
from typing import Final

LINE_BYTES_MAX: Final = 32 << 10
"""What is longer is cut, and says so; fal's SDK prints a traceback as one line of 10 to 20 KB."""
BAR_PAUSE_S: Final = 1.0

_STEERS: Final = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours and movements
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # titles and links
    r"|\x1b[ -/]*[0-~]?"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
_TRACEBACK: Final = '{"traceback": "'
"""How fal's SDK prints one."""


class Assembly:
    """One stream of one request. ``now`` is any clock that does not jump, in seconds."""

    __slots__ = ("_bar", "_cut", "_overwrite", "_rest", "_shown", "_shown_at")

    def __init__(self) -> None:
        self._rest = b""
        """The line that is not over."""
        self._cut = 0
        """Bytes of it that were too many."""
        self._overwrite = False
        """What comes next stands in its place."""
        self._bar = False
        self._shown = b""
        self._shown_at = math.inf

    def feed(self, data: bytes, *, now: float) -> list[str]:
        """Take *data*; return the lines that are over, and the state of a bar that nobody has seen for a while."""
        *whole, rest = data.split(b"\n")
        lines = list[str]()
        for piece in whole:
            self._take(piece, now)
            lines += self._end()
        self._take(rest, now)
        if self._bar and now - self._shown_at >= BAR_PAUSE_S and self._rest != self._shown:
            self._shown, self._shown_at = self._rest, now
            lines += self._text()
        return lines

    def close(self) -> list[str]:
        """Return what stands in a line that nobody ended."""
        return self._end()

    def _take(self, piece: bytes, now: float) -> None:
        first, *states = piece.split(b"\r")
        self._append(first)
        for state in states:
            self._overwrite = True
            if state and not self._bar:
                self._bar, self._shown_at = True, now
            self._append(state)

    def _append(self, text: bytes) -> None:
        if not text:
            return
        if self._overwrite:
            self._rest, self._cut, self._overwrite = b"", 0, False
        room = LINE_BYTES_MAX - len(self._rest)
        self._cut += max(len(text) - room, 0)
        self._rest += text[:room]

    def _end(self) -> list[str]:
        seen = self._bar and self._rest == self._shown
        lines = [] if seen else self._text()
        self._rest, self._cut, self._overwrite = b"", 0, False
        self._bar, self._shown, self._shown_at = False, b"", math.inf
        return lines

    def _text(self) -> list[str]:
        """Return the line that is not over, if there is anything to read in it."""
        text = readable(self._rest.decode("utf-8", "replace"))
        if self._cut:
            text += f" … ({self._cut:,} bytes more)"
        return [text] if text and not text.isspace() else []


def readable(text: str) -> str:
    """Return *text* without what would steer a terminal or break an encoding, and fal's tracebacks as lines."""
    if text.startswith(_TRACEBACK):
        text = _unfolded(text)
    if not text.isprintable():
        text = _STEERS.sub("", text).encode("utf-8", "replace").decode()
    return text.rstrip()


def _unfolded(text: str) -> str:
    try:
        told = json.loads(text)["traceback"]
    except (ValueError, KeyError, TypeError):
        return text
    return told if isinstance(told, str) else text
