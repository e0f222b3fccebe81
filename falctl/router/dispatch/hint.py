"""The hint that a request wants, from its header or else from a field of its JSON body."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final

from falctl.core.types import Hint, Wanted
from falctl.router.passing.headers import is_json
from falctl.wire import H_HINT

HINT_CHARS_MAX: Final = 1024
"""
A longer one is no name of a model, and no runner lists it (`core.hints.HINT_BYTES_MAX`): it goes to the app and counts
for nothing here. What is learnt is kept by hint, thousands of them; at 60 KiB each it would fill memory and disk.
"""

# How far into a body its field is looked for, as parsing blocks the loop.
# measured: 3.6 ms at worst (a list of 1e5), median of 9, CPython 3.11, 2-core VM, x86-64, 2026-11-23
SEARCHED_BYTES_MAX: Final = 64 << 10
MEMBERS_MAX: Final = 256

_HEADER: Final = H_HINT.encode()
_BLANK: Final = re.compile(r"[ \t\n\r]*")
_decoder: Final = json.JSONDecoder()


def wanted_hint(head: Mapping[bytes, bytes], body: bytes, *, field: str) -> Wanted | None:
    """
    Return what the header asks for, byte for byte, else what *field* of *body* does; ``""`` for no field.

    None: nothing, or what is longer than `HINT_CHARS_MAX`.
    """
    value = head.get(_HEADER, b"").strip(b" \t")
    if len(value) > HINT_CHARS_MAX:
        return None
    if value:
        return Wanted(Hint(value.decode("latin-1")), "header")
    encoded = b"content-encoding" in head
    if not field or not body or encoded or not is_json(head.get(b"content-type"), body):
        return None
    found = _text_field(body, field)
    return None if found is None else Wanted(Hint(found), "body")


def _text_field(body: bytes, field: str) -> str | None:
    """
    Return the first top-level member *field* of an object, if it is a text of 1 to `HINT_CHARS_MAX` characters.

    Only what stands before it is parsed. Whatever is no JSON is for the app to complain about.
    """
    text = body[:SEARCHED_BYTES_MAX].decode("utf-8", "replace")
    try:
        at = _after(text, 0, "{")
        for _ in range(MEMBERS_MAX):
            key, at = _decoder.raw_decode(text, _skip(text, at))
            value, at = _decoder.raw_decode(text, _skip(text, _after(text, at, ":")))
            if key == field:
                usable = isinstance(value, str) and 0 < len(value) <= HINT_CHARS_MAX
                return value if usable else None
            at = _after(text, at, ",")
    except (ValueError, RecursionError):
        pass
    return None


def _skip(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    assert match is not None, "the pattern matches the empty string"
    return match.end()


def _after(text: str, at: int, mark: str) -> int:
    """Return the place behind *mark*, which must come next. Raises ValueError."""
    at = _skip(text, at)
    if not text.startswith(mark, at):
        msg = f"no {mark} at {at}"
        raise ValueError(msg)
    return at + 1
