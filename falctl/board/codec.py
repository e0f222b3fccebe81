r"""
Rows to payloads and back: compact JSON, a row as the list of its fields in their order.

JSON and not fields of fixed width: any hint fits, byte for byte; a lookup parses nothing, and to publish takes tens of us.

A reader of another release would misread such a list, so `SCHEMA`, a checksum of all rows' fields, stands in
the board's header. Text is UTF-8 with lone surrogates let through: any `str` comes back equal, which
``\uXXXX`` escapes do not promise (two lone surrogates would come back as one character).
"""

from __future__ import annotations

import json
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from operator import attrgetter
from typing import Any, Final, TypeAlias, TypeVar, get_args, get_type_hints

from falctl.board.rows import (
    EventRow,
    Executing,
    FleetRow,
    GpuRow,
    LifeRow,
    MemoryRow,
    ModelRow,
    QueuedRow,
    RouterRow,
    RunnerRow,
)

Row: TypeAlias = FleetRow | RouterRow | MemoryRow | RunnerRow | LifeRow | GpuRow
R = TypeVar("R", FleetRow, RouterRow, MemoryRow, RunnerRow, LifeRow, GpuRow)

_ROWS: Final[tuple[type[Any], ...]] = (FleetRow, RouterRow, MemoryRow, RunnerRow, LifeRow, GpuRow)
_PARTS: Final[tuple[type[Any], ...]] = (Executing, ModelRow, QueuedRow, EventRow)

SCHEMA: Final = zlib.crc32(
    repr([[(k.__name__, f.name, f.type) for f in fields(k)] for k in _ROWS + _PARTS]).encode()
)

_VALUES: Final = {kind: attrgetter(*(f.name for f in fields(kind))) for kind in _ROWS + _PARTS}

_CLIPS: Final = (256, 32)
"""Characters that a text may keep in a row that does not fit; a hint in `RunnerRow.hints` is kept whole or not at all."""

_LISTS: Final[dict[type[Any], tuple[str, ...]]] = {
    RunnerRow: ("hints", "models", "executing"),
    RouterRow: ("queue", "events"),
}
"""What a row may lose when it does not fit, in this order."""


def _part_of(annotation: object) -> tuple[bool, type[Any] | None]:
    """Return whether a field is a tuple (or a tuple or None), and the row type of its items, None if plain."""
    if getattr(annotation, "__origin__", None) is tuple:
        item = get_args(annotation)[0]
        return True, item if item in _PARTS else None
    return next((_part_of(choice) for choice in get_args(annotation) if get_args(choice)), (False, None))


def _tuples_of(kind: type[Any]) -> tuple[tuple[int, type[Any] | None], ...]:
    hints = get_type_hints(kind)
    found = ((i, *_part_of(hints[f.name])) for i, f in enumerate(fields(kind)))
    return tuple((i, part) for i, is_tuple, part in found if is_tuple)


_TUPLES: Final = {kind: _tuples_of(kind) for kind in _ROWS}


def _values(row: object) -> object:
    return _VALUES[type(row)](row)


_dumps: Final = json.JSONEncoder(
    default=_values, separators=(",", ":"), ensure_ascii=False, check_circular=False
).encode


def encode(row: Row, *, capacity_bytes: int) -> bytes:
    """
    Return *row* as a payload of at most *capacity_bytes*.

    A row that is too big loses what can be done without: long texts are cut, then models, as long as they take more
    than half, hints (counted in `RunnerRow.hints_dropped`), the other models and running requests, or waiting requests
    and the oldest events. Of all but those the first ones stay.
    """
    payload = _encode(row)
    return payload if len(payload) <= capacity_bytes else _fit(row, capacity_bytes)


def decode(kind: type[R], payload: bytes) -> R:
    """Return the row of *kind* that `encode` made *payload* from."""
    values = json.loads(payload)
    for i, part in _TUPLES[kind]:
        if values[i] is not None:
            values[i] = tuple(values[i]) if part is None else tuple(part(*v) for v in values[i])
    return kind(*values)


def _encode(row: Row) -> bytes:
    return _dumps(row).encode("utf-8", "surrogatepass")


def _fit(row: Row, capacity_bytes: int) -> bytes:
    for candidate in _smaller(row, capacity_bytes):
        payload = _encode(candidate)
        if len(payload) <= capacity_bytes:
            return payload
    msg = f"a {type(row).__name__} does not fit {capacity_bytes} bytes"
    raise AssertionError(msg)


def _smaller(row: Row, capacity_bytes: int) -> Iterable[Row]:
    for chars in _CLIPS:
        row = _clipped(row, chars)
        yield row
        if isinstance(row, RunnerRow):
            # Models on disk are many and worth little; hints say where each request goes.
            bare = len(_encode(replace(row, models=())))
            row = _shortened(row, "models", max(capacity_bytes, bare + capacity_bytes // 2))
            yield row
        for name in _LISTS.get(type(row), ()):
            row = _shortened(row, name, capacity_bytes)
            yield row


def _shortened(row: Row, name: str, capacity_bytes: int) -> Row:
    """Return *row* with as many items of the field *name* as fit, none if none do."""
    size = len(getattr(row, name) or ())
    kept = bisect_right(range(1, size + 1), capacity_bytes, key=lambda n: len(_encode(_with(row, name, n))))
    return _with(row, name, kept)


_replace: Final[Callable[..., Row]] = replace
"""With the fields as computed names, which no type checker can follow."""


def _with(row: Row, name: str, kept: int) -> Row:
    items = getattr(row, name)
    if items is None or kept == len(items):
        return row
    if name == "events":
        return _replace(row, events=items[len(items) - kept :])
    short = _replace(row, **{name: items[:kept]})
    if isinstance(short, RunnerRow) and name == "hints":
        return replace(short, hints_dropped=short.hints_dropped + len(items) - kept)
    return short


def _clipped(row: Row, chars: int) -> Row:
    whole = ("hints",)
    return _replace(
        row, **{f.name: _clip(getattr(row, f.name), chars) for f in fields(row) if f.name not in whole}
    )


def _clip(value: Any, chars: int) -> Any:
    if isinstance(value, str):
        return value if len(value) <= chars else value[: chars - 1] + "…"
    if isinstance(value, tuple):
        return tuple(_clip(item, chars) for item in value)
    if type(value) in _VALUES:
        return type(value)(*(_clip(item, chars) for item in _VALUES[type(value)](value)))
    return value
