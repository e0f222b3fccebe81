"""Where the supervisor and its children print: one stream, each child's lines under its own prefix."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Final

LINE_BYTES_MAX: Final = 1 << 16
"""A longer line of a child is cut into pieces, so that a child cannot fill our memory."""


def say(line: str) -> None:
    """Print *line* to standard error; nothing happens when the terminal is gone."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


async def relay(stream: asyncio.StreamReader, prefix: str) -> None:
    """Print every line of *stream* behind ``[prefix]`` until its end."""
    while chunk := await _line(stream):
        say(f"[{prefix}] {chunk.decode(errors='replace').rstrip()}")


async def _line(stream: asyncio.StreamReader) -> bytes:
    try:
        return await stream.readuntil(b"\n")
    except asyncio.IncompleteReadError as error:
        return error.partial
    except asyncio.LimitOverrunError as error:
        return await stream.readexactly(max(error.consumed, 1))
