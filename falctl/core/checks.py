"""
Checks of values that a file says were learnt: each returns the value, or raises ValueError.

A number of this kind is finite and inside bounds that nothing real exceeds, so that arithmetic with it stays finite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias

Check: TypeAlias = Callable[[object], Any]

TEXT_MAX: Final = 65536
"""Characters; a hint comes in a header of 64 KiB at most, or from a body."""
NUMBER_MAX: Final = 1 << 60
"""Seconds, bytes, or how many."""
LOG_MAX: Final = 42.0
"""Its logarithm."""


def text(value: object) -> str:
    """Return a text, such as a hint."""
    if isinstance(value, str) and len(value) <= TEXT_MAX:
        return value
    raise _refusal(value, "a text")


def amount(value: object) -> float:
    """Return a number from 0 up."""
    return _number(value, least=0.0, wanted="a number from 0 up")


def logarithm(value: object) -> float:
    """Return the logarithm of such a number."""
    found = _number(value, least=-LOG_MAX, wanted="a logarithm")
    if found > LOG_MAX:
        raise _refusal(value, "a logarithm")
    return found


def whole(value: object) -> int:
    """Return a whole number from 0 up."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= NUMBER_MAX:
        return value
    raise _refusal(value, "a whole number")


def rows(table: object, *checks: Check) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a list of lists, each cell as its check returns it."""
    if not isinstance(table, list):
        raise _refusal(table, "a list of rows")
    for row in table:
        if not isinstance(row, list) or len(row) != len(checks):
            raise _refusal(row, f"a row of {len(checks)}")
        yield tuple(check(cell) for check, cell in zip(checks, row, strict=True))


def part(table: object, name: str) -> object:
    """Return the member *name* of an object."""
    if isinstance(table, dict) and name in table:
        return table[name]
    raise _refusal(table, f"an object with {name!r}")


def _number(value: object, *, least: float, wanted: str) -> float:
    # An int may be too large for a float, and NaN is in no range: compare first.
    if isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= NUMBER_MAX:
        return float(value)
    raise _refusal(value, wanted)


def _refusal(value: object, wanted: str) -> ValueError:
    return ValueError(f"{ascii(value)[:80]} is not {wanted}")
