"""
Make what an app's `provide_hints()` returned fit to be published: values in, values and complaints out.

A published hint travels to clients in one comma-joined header of latin-1 bytes, and is compared exactly. So a hint
that would arrive changed (a comma cuts it, blanks are stripped), break the answer (control characters) or not
arrive at all (not latin-1) is dropped, each with a complaint; the others are kept. A return value that is no list
of strings says nothing about what the runner holds: then the hints that were known stay.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Final

from falctl.core.types import Hint

HINT_BYTES_MAX: Final = 1024
HEADER_BYTES_MAX: Final = 60 * 1024
"""Of all hints joined; HTTP clients and our own transport end at 64 KiB for one header field."""
HINTS_MAX: Final = HEADER_BYTES_MAX
"""More cannot fit the header anyway; an endless generator ends here."""

_LATIN1_LAST: Final = "\xff"
_DEL: Final = "\x7f"
_SHOWN_CHARACTERS_MAX: Final = 80


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What may be published, and what an author should hear about the rest."""

    kept: tuple[Hint, ...] | None
    """None: nothing usable was returned, so keep the hints known before."""
    complaints: tuple[str, ...] = ()
    overflow: int = 0
    """Hints dropped because all together are too long for the header."""


def clean(given: object) -> Cleaned:
    """Return the publishable part of *given*, in its order, without repeats. Iterates it, so it may raise."""
    if isinstance(given, str | bytes):
        return _unusable(f"provide_hints() returned a bare {type(given).__name__}; return a list of str")
    if not isinstance(given, Iterable):
        return _unusable(f"provide_hints() returned {_article(given)}; return a list of str")
    items = tuple(islice(given, HINTS_MAX + 1))
    for item in items:
        if not isinstance(item, str):
            return _unusable(
                f"provide_hints() returned a list with {_article(item)} in it; return a list of str"
            )
    return _fit(dict.fromkeys(items))


def _fit(hints: Iterable[str]) -> Cleaned:
    kept: list[Hint] = []
    complaints: list[str] = []
    room_bytes = HEADER_BYTES_MAX
    overflow = 0
    for hint in hints:
        if (fault := _fault(hint)) is not None:
            complaints.append(f"hint {_shown(hint)} is dropped: {fault}")
            continue
        need_bytes = len(hint) + (1 if kept else 0)
        if overflow or need_bytes > room_bytes:
            overflow += 1
            continue
        room_bytes -= need_bytes
        kept.append(Hint(hint))
    if overflow:
        complaints.append(f"hints beyond {HEADER_BYTES_MAX} bytes in all are dropped")
    return Cleaned(tuple(kept), tuple(complaints), overflow)


def _fault(hint: str) -> str | None:
    if not hint:
        return "it is empty"
    if len(hint) > HINT_BYTES_MAX:
        return f"it is longer than {HINT_BYTES_MAX} bytes"
    if max(hint) > _LATIN1_LAST:
        return "it is not latin-1, so no header can carry it"
    if min(hint) < " " or _DEL in hint:
        return "it holds a control character"
    if "," in hint:
        return "it holds a comma, which separates hints in the header"
    return "it begins or ends with a blank, which the wire strips" if hint != hint.strip(" ") else None


def _unusable(complaint: str) -> Cleaned:
    return Cleaned(None, (f"{complaint}; the hints known before stay",))


def _article(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _shown(hint: str) -> str:
    short = hint if len(hint) <= _SHOWN_CHARACTERS_MAX else hint[:_SHOWN_CHARACTERS_MAX] + "..."
    return ascii(short)
