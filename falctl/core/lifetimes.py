"""
How long a stored file is kept, where its request says it, and the name in which that stands.

The name bears the instant of its end, ``<random>.x<seconds since 1970>.png`` (0: never), so that whoever sweeps needs
nothing else, a copied state directory means the same, and a change of `files.keep` concerns only those that say nothing.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, Final

HEADER: Final = "x-fal-object-lifecycle-preference"
KEY: Final = "expiration_duration_seconds"
SECONDS_MIN: Final = 1.0
SECONDS_MAX: Final = 10 * 366 * 86400.0

_MARK: Final = re.compile(r"\.x([0-9]{1,12})\.[a-z0-9]+$")
_NEVER: Final = 0


@dataclass(frozen=True, slots=True)
class Lifetime:
    """What a request wants for the files that are stored while it is served."""

    seconds: float | None
    """None: they are kept for ever."""

    def mark(self, now: float) -> str:
        """Return the part of the name of a file that is stored *now* (wall clock), before its suffix."""
        return f".x{_NEVER if self.seconds is None else math.ceil(now + self.seconds)}"


def read_header(value: str) -> Lifetime | None:
    """
    Return what a header of the name `HEADER` says; None: nothing of how long.

    Raises:
        ValueError: it is no such header; says how one is written.
    """
    try:
        table = json.loads(value)
    except (ValueError, RecursionError):
        table = None
    if isinstance(table, dict):
        return read_preference(table)
    msg = f'it is no JSON object; write for example {{"{KEY}": 3600}}'
    raise ValueError(msg)


def read_preference(table: dict[str, Any]) -> Lifetime | None:
    """Return what a preference says; None: nothing of how long. Raises ValueError: it is no number of seconds."""
    if KEY not in table:
        return None
    seconds = table[KEY]
    if seconds is None:
        return Lifetime(None)
    # Python takes true for 1; so would nobody who wrote it.
    if (
        not isinstance(seconds, int | float)
        or isinstance(seconds, bool)
        or not SECONDS_MIN <= seconds <= SECONDS_MAX
    ):
        msg = f"{KEY} is {json.dumps(seconds)}; write a number of seconds from 1 to {SECONDS_MAX:.0f}, or null for ever"
        raise ValueError(msg)
    return Lifetime(float(seconds))


def ends_at(name: str, *, otherwise: float) -> float:
    """Return when the file of that name is to be deleted, by the wall clock; *otherwise* if its name does not say."""
    match = _MARK.search(name)
    if match is None:
        return otherwise
    at = int(match[1])
    return math.inf if at == _NEVER else float(at)
