"""
All transcripts of a host, and how they reach the router: as batches on the event stream.

Lines go out every `BATCH_S` and at their request's end, before its `Released`. A router that is not there, or reads
too slowly, finds them later; what was told lately is kept for the next one, as this one may have died over it. All
that is kept is bounded: beyond it what has been told is forgotten, then what comes is dropped, and that is told.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Final

from falctl.clock import monotonic_s, wall_s
from falctl.host.events import EventHub
from falctl.host.prints.transcript import Level, Line, Transcript
from falctl.wire import Printed

BATCH_S: Final = 0.1
RETELL_S: Final = 10.0
"""How long the lines of a request that has ended are kept for a router that is just being restarted."""
HELD_BYTES_MAX: Final = 16 << 20
MESSAGE_BYTES_MAX: Final = 64 << 10
LAG_BYTES_MAX: Final = 1 << 20
"""Unread bytes of the event stream beyond which lines wait."""


class Logbook:
    """`hear` and `say` from any thread, never waiting for anybody but each other; the rest belongs to the event loop."""

    def __init__(self, hub: EventHub, *, epoch: int) -> None:
        self._hub = hub
        self._epoch = epoch
        self.drain: Callable[[], None] = _nothing
        """Takes what C libraries and children have written by now, before it would count for somebody else."""
        self._loop = asyncio.get_running_loop()
        self._lock = threading.RLock()
        self._inside = False
        """A signal or a destructor may print while this very thread is in here."""
        self._kept: dict[Transcript, float | None] = {}
        """Those with lines, and since when they are over."""
        self._held_bytes = 0
        self._told_bytes = 0
        """Of these, what has been told."""
        self._dirty: list[Transcript] = []
        self._armed = False

    def hear(self, transcript: Transcript, level: Level, data: bytes) -> None:
        """Take bytes that were printed for a request."""
        with self._lock:
            if not self._inside:
                self._inside = True
                try:
                    self._grew(transcript, transcript.feed(level, data, now=monotonic_s(), at=wall_s()))
                finally:
                    self._inside = False

    def say(self, transcript: Transcript, level: Level, text: str) -> None:
        """Take a message that was logged for a request."""
        with self._lock:
            if not self._inside:
                self._inside = True
                try:
                    self._grew(transcript, transcript.say(level, text, now=monotonic_s(), at=wall_s()))
                finally:
                    self._inside = False

    def end(self, transcript: Transcript) -> None:
        """Tell the rest of a request's lines now. What still comes, of a background task, follows later."""
        transcript.ended = True
        if transcript.silent:
            return
        with self._lock:
            self._grew(transcript, transcript.close(now=monotonic_s(), at=wall_s()))
            if transcript in self._kept:
                self._kept[transcript] = monotonic_s()
            if self._hub.listening and self._hub.lag_bytes <= 8 * LAG_BYTES_MAX:
                self._tell(transcript)
            self._forget_old()

    def recap(self) -> list[Printed]:
        """Return all that a new reader of the event stream may not know."""
        with self._lock:
            told = [message for kept in self._kept for message in self._messages(kept, 0, again=True)]
            for transcript in self._kept:
                self._told(transcript)
            self._dirty.clear()
            return told

    # --- under the lock ----------------------------------------------------------------------------

    def _grew(self, transcript: Transcript, by_bytes: int) -> None:
        if not by_bytes:
            return
        self._held_bytes += by_bytes
        if transcript not in self._kept:
            self._kept[transcript] = monotonic_s() if transcript.ended else None
        if self._held_bytes > HELD_BYTES_MAX:
            self._make_room(transcript)
        if not transcript.dirty:
            transcript.dirty = True
            self._dirty.append(transcript)
        if not self._armed:
            self._armed = True
            self._loop.call_soon_threadsafe(self._arm)

    def _make_room(self, newest: Transcript) -> None:
        for transcript in list(self._kept) if self._told_bytes else ():
            self._forget_told(transcript)
            if self._held_bytes <= HELD_BYTES_MAX:
                return
        lines = newest.lines or []
        while lines and self._held_bytes > HELD_BYTES_MAX:
            size = lines.pop().size_bytes
            self._held_bytes -= size
            newest.drop(size)

    def _forget_told(self, transcript: Transcript) -> None:
        lines = transcript.lines or []
        freed = sum([line.size_bytes for line in lines[: transcript.sent]])
        self._held_bytes -= freed
        self._told_bytes -= freed
        del lines[: transcript.sent]
        transcript.sent = 0
        if not lines and transcript.ended:
            self._kept.pop(transcript, None)

    def _forget_old(self) -> None:
        before = monotonic_s() - RETELL_S
        for transcript in [t for t, at in self._kept.items() if at is not None and at < before]:
            if not transcript.dirty:
                self._forget_told(transcript)

    def _tell(self, transcript: Transcript) -> None:
        for message in self._messages(transcript, transcript.sent, again=False):
            self._hub.emit(message)
        self._told(transcript)

    def _told(self, transcript: Transcript) -> None:
        lines = transcript.lines or []
        self._told_bytes += sum([line.size_bytes for line in lines[transcript.sent :]])
        transcript.sent = len(lines)
        transcript.dirty = False

    def _messages(self, transcript: Transcript, first: int, *, again: bool) -> Iterator[Printed]:
        batch, size = list[tuple[float, str, str]](), 0
        for line in (transcript.lines or [])[first:]:
            if batch and size + line.size_bytes > MESSAGE_BYTES_MAX:
                yield Printed(self._epoch, transcript.request, batch, again)
                batch, size = [], 0
            batch.append(_row(line))
            size += line.size_bytes
        if batch:
            yield Printed(self._epoch, transcript.request, batch, again)

    # --- batches -----------------------------------------------------------------------------------

    def _arm(self) -> None:
        self._loop.call_later(BATCH_S, self._flush)

    def _flush(self) -> None:
        with self._lock:
            self._armed = False
            self._forget_old()
            if not self._hub.listening:
                return  # the next reader gets a recap
            if self._hub.lag_bytes > LAG_BYTES_MAX:
                self._armed = True
                self._arm()
                return
            dirty, self._dirty = self._dirty, []
            for transcript in dirty:
                if transcript.dirty:
                    self._tell(transcript)


def _nothing() -> None:
    """Nobody writes but Python."""


def _row(line: Line) -> tuple[float, str, str]:
    return line.at, line.level, line.text
