"""Lines of a byte stream, as both channels of `falctl.wire` frame their messages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class LineSplitter:
    """Cuts a byte stream into lines, whatever the chunks."""

    _rest: bytes = field(default=b"")

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield every line that *chunk* completes, without its newline."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        yield from lines
