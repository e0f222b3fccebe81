"""
The hint that a request wants, from its header or else from a field of its JSON body.

A body may want a model and LoRAs upon it, ``loras: [{"path": name}]``: to an app that says by what it joins the two, they
are one model with a name of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Final

from falctl.core.sources import named
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

LORAS_MAX: Final = 64
"""More make no name that a runner lists."""

_LORAS: Final = "loras"
_QUOTED_LORAS: Final = b'"loras"'
_HEADER: Final = H_HINT.encode()
_BLANK: Final = re.compile(r"[ \t\n\r]*")
_decoder: Final = json.JSONDecoder()


def wanted_hint(
    head: Mapping[bytes, bytes], body: bytes, *, field: str, joint: str | None = ""
) -> Wanted | None:
    """
    Return what the header asks for, byte for byte, else what *field* of *body* does; ``""`` for no field.

    *joint*: what the app writes between a model and the LoRAs that the body wants it drawn with; empty: it knows of none;
    None: that is not known yet, and they are told apart, for `falctl.core.sources.named`.
    None is returned for nothing, or for what is longer than `HINT_CHARS_MAX`.
    """
    value = head.get(_HEADER, b"").strip(b" \t")
    if len(value) > HINT_CHARS_MAX:
        return None
    if value:
        return Wanted(Hint(value.decode("latin-1")), "header")
    encoded = b"content-encoding" in head
    if not field or not body or encoded or not is_json(head.get(b"content-type"), body):
        return None
    # A body is not read beyond the model where no LoRA can follow.
    lays = joint != "" and _QUOTED_LORAS in body[:SEARCHED_BYTES_MAX]
    found = _members(body, {field, _LORAS} if lays else {field})
    hint = found.get(field)
    if not isinstance(hint, str) or not 0 < len(hint) <= HINT_CHARS_MAX:
        return None
    wanted = Wanted(Hint(hint), "body", _paths(found.get(_LORAS)))
    return wanted if joint is None else named(wanted, joint)


def _paths(loras: object) -> tuple[str, ...]:
    """Return the paths of *loras*; nothing if any of them is no LoRA: it is for the app to complain about."""
    if not isinstance(loras, list) or len(loras) > LORAS_MAX:
        return ()
    paths = [lora.get("path") if isinstance(lora, dict) else None for lora in loras]
    texts = tuple(path for path in paths if isinstance(path, str) and 0 < len(path) <= HINT_CHARS_MAX)
    return texts if len(texts) == len(paths) else ()


def _members(body: bytes, fields: Collection[str]) -> dict[str, object]:
    """
    Return the top-level members *fields* of an object, the first of each name, as far as they are found.

    Only what stands before the last of them is parsed. Whatever is no JSON is for the app to complain about.
    """
    text = body[:SEARCHED_BYTES_MAX].decode("utf-8", "replace")
    found: dict[str, object] = {}
    try:
        at = _after(text, 0, "{")
        for _ in range(MEMBERS_MAX):
            key, at = _decoder.raw_decode(text, _skip(text, at))
            value, at = _decoder.raw_decode(text, _skip(text, _after(text, at, ":")))
            if key in fields:
                found.setdefault(key, value)
                if len(found) == len(fields):
                    break
            at = _after(text, at, ",")
    except (ValueError, RecursionError):
        pass
    return found


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
