"""What we tell of an error that foreign code raised: one line for a person, and a traceback that begins with the app."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path
from types import TracebackType
from typing import Final, TypeVar

E = TypeVar("E", bound=BaseException)

LINE_MAX: Final = 2000
"""Characters of a line for a person; the control channel and a terminal must cope with it."""
_SAID_MAX: Final = 1500
"""Leaves room for what stands around it, above all for where it happened."""

_LIBRARIES: Final = tuple(
    {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)
_OURS: Final = str(Path(__file__).parents[1])


def user_line(error: BaseException) -> str:
    """Return ``" (file:line)"`` of the innermost frame of *error* that is the user's code, else ``""``."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}:{error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        if _is_users(frame.filename):
            return f" ({frame.filename}:{frame.lineno})"
    return ""


def said(error: BaseException) -> str:
    """Return the type and message of *error* on one line."""
    text = one_line(str(error), at_most=_SAID_MAX)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def one_line(text: str, *, at_most: int = LINE_MAX) -> str:
    """Return *text* on one line of *at_most* characters, with what would steer a terminal escaped."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))
    return line if len(line) <= at_most else line[: at_most - 1] + "…"


def from_the_app(error: E) -> E:
    """Return *error* and what it came from, without the frames before the first that is the user's, if one is."""
    chain: list[BaseException | None] = [error]
    seen: set[int] = set()
    while chain:
        if (link := chain.pop()) is not None and id(link) not in seen:
            seen.add(id(link))
            link.__traceback__ = _first_of_user(link.__traceback__) or link.__traceback__
            chain += [link.__cause__, link.__context__]
    return error


def _first_of_user(frames: TracebackType | None) -> TracebackType | None:
    while frames is not None and not _is_users(frames.tb_frame.f_code.co_filename):
        frames = frames.tb_next
    return frames


def _is_users(filename: str) -> bool:
    return not filename.startswith((*_LIBRARIES, _OURS, "<"))
