"""
How a connection of uvicorn's HTTP protocol becomes one of its websocket protocol, in the router and in a host.

uvicorn repeats the whole request to its websocket protocol, whose parser allows lines of 8 KiB and 128 headers. It is
told only what it looks at: what the request is about has been read before, by a parser that allows more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_LOOKED_AT: Final = frozenset(
    {
        b"host",
        b"connection",
        b"upgrade",
        b"sec-websocket-key",
        b"sec-websocket-version",
        b"sec-websocket-protocol",
    }
)


def handshake(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the request for a websocket that has *headers*, whose names are in lower case, as it is repeated."""
    lines = [b"GET / HTTP/1.1", *(b"%b: %b" % field for field in headers if field[0] in _LOOKED_AT)]
    return b"\r\n".join([*lines, b"", b""])
