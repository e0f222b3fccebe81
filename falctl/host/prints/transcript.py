"""What one request has printed, as lines with level and time, bounded in all and per second."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from falctl.host.prints.assembly import LINE_BYTES_MAX, Assembly, readable

Level: TypeAlias = Literal["STDOUT", "STDERR", "DEBUG", "INFO", "WARN", "ERROR"]
"""fal's words."""

TOTAL_BYTES_MAX: Final = 1_000_000
"""Of one request. The job store keeps 1 MiB of all attempts of a job together."""
PER_SECOND_BYTES_MAX: Final = 128 << 10
LINE_COSTS_BYTES: Final = 64
"""What a line is said to take beside its text, here as in the job store."""

_TOO_MUCH: Final = f"falctl: this request has printed {TOTAL_BYTES_MAX:,} bytes; nothing more of it is kept"


@dataclass(frozen=True, slots=True)
class Line:
    """A line as it is told: when it was printed (seconds since 1970), what it is, what it says."""

    at: float
    level: Level
    text: str

    @property
    def size_bytes(self) -> int:
        """Return what it is said to take."""
        return len(self.text) + LINE_COSTS_BYTES


class Transcript:
    """
    The lines of one request. Used under the lock of the `Logbook`, which takes them out.

    Making one must cost next to nothing: most requests print nothing.
    """

    __slots__ = ("_at", "_dropped", "_dropped_bytes", "_full", "_streams", "_total", "_window", "_window_at", "dirty", "ended", "lines", "request", "sent")  # fmt: skip

    def __init__(self, request: str) -> None:
        self.request = request
        self.lines: list[Line] | None = None
        """Those that may have to be told, or told again; None: there was none."""
        self.sent = 0
        """How many of them have been told."""
        self.dirty = False
        self.ended = False
        self._streams: dict[Level, Assembly] | None = None
        self._at = 0.0
        self._total = 0
        self._full = False
        self._window_at = 0.0
        self._window = 0
        self._dropped = 0
        self._dropped_bytes = 0

    @property
    def silent(self) -> bool:
        """Return whether nothing at all was printed."""
        return self._streams is None and self.lines is None

    def feed(self, level: Level, data: bytes, *, now: float, at: float) -> int:
        """Take bytes of a stream; return by how much that grew. ``now`` is monotonic, ``at`` since 1970."""
        if self._full:
            return 0
        if self._streams is None:
            self._streams = {}
        stream = self._streams.get(level)
        if stream is None:
            stream = self._streams[level] = Assembly()
        return sum([self._keep(level, text, now, at) for text in stream.feed(data, now=now)])

    def say(self, level: Level, text: str, *, now: float, at: float) -> int:
        """Take a message that is whole; return by how much that grew."""
        cut = len(text) - LINE_BYTES_MAX
        if cut > 0:
            text = f"{text[:LINE_BYTES_MAX]} … ({cut:,} characters more)"
        text = readable(text)
        return self._keep(level, text, now, at) if text else 0

    def close(self, *, now: float, at: float) -> int:
        """Take what stands in lines that nobody ended, and tell what was dropped; return by how much that grew."""
        grown = 0
        for level, stream in (self._streams or {}).items():
            grown += sum([self._keep(level, text, now, at) for text in stream.close()])
        return grown + self._tell_dropped(at)

    def drop(self, line_bytes: int) -> None:
        """Note that a line finds no room."""
        self._dropped += 1
        self._dropped_bytes += line_bytes

    def _keep(self, level: Level, text: str, now: float, at: float) -> int:
        if self._full:
            return 0
        size = len(text) + LINE_COSTS_BYTES
        if self._total + size > TOTAL_BYTES_MAX:
            self._full = True
            return self._tell_dropped(at) + self._add("WARN", _TOO_MUCH, at)
        if now - self._window_at >= 1.0:
            self._window_at, self._window = now, 0
        if self._window + size > PER_SECOND_BYTES_MAX:
            self.drop(size)
            return 0
        self._window += size
        return self._tell_dropped(at) + self._add(level, text, at)

    def _tell_dropped(self, at: float) -> int:
        if not self._dropped:
            return 0
        told = f"falctl: {self._dropped:,} lines ({self._dropped_bytes:,} bytes) are left out: they came too fast"
        self._dropped = self._dropped_bytes = 0
        return self._add("WARN", told, at)

    def _add(self, level: Level, text: str, at: float) -> int:
        # In order and distinct, so that what is told twice can be known again.
        self._at = at if at > self._at else self._at + 1e-6
        line = Line(self._at, level, text)
        self._total += line.size_bytes
        if self.lines is None:
            self.lines = []
        self.lines.append(line)
        return line.size_bytes
