"""Where the columns of the fleet stand at one width of the terminal: three side by side, or a condensed pair."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from falctl.dashboard.snapshot import CardFacts

WIDE_FROM: Final = 100
"""From this width on a runner has three columns: who it is, what it does, what it holds."""

GAP: Final = 3
AMOUNT_CELLS: Final = 16
"""``1535.0 / 2048 GiB`` is the widest amount that real machines show."""

BAR_CELLS_MAX: Final = 56


@dataclass(frozen=True, slots=True)
class Columns:
    """Widths in cells. ``mid`` is 0 when condensed."""

    width: int
    """Cells between the margins."""
    index: int
    left: int
    """Card index and name; below them the runner and its state."""
    mid: int
    """Utilisation, temperature, power; below them what runs."""
    right: int
    """The memory bar with its amount; below them the models."""
    sensors: bool
    """Whether any card has a temperature or a power draw to show."""
    has_gpu: bool

    @property
    def wide(self) -> bool:
        return self.mid > 0

    @property
    def memory_bar(self) -> int:
        """Cells for the memory bar; below 4 there is none."""
        room = self.right - AMOUNT_CELLS - 1
        return 0 if room < 4 else min(room, BAR_CELLS_MAX)


def columns_for(cards: Iterable[CardFacts], *, width: int) -> Columns:
    """Return the columns for a terminal *width* cells wide."""
    cards = tuple(cards)
    inner = max(1, width - 2)
    sensors = any(card.temp_c is not None or card.power_w is not None for card in cards)
    has_gpu = any(card.kind == "cuda" for card in cards)
    if width < WIDE_FROM:
        index = 4
        rest = inner - index - CONDENSED_UTIL_CELLS - AMOUNT_CELLS - 1
        left = index + (max(6, rest) if rest < 16 else _between(10, int(rest * 0.45), 24))
        return Columns(inner, index, left, 0, inner - left - CONDENSED_UTIL_CELLS, sensors, has_gpu)
    left = _between(30, int(inner * 0.26), 42)
    mid = _between(32, int(inner * 0.31), 54)
    return Columns(inner, 5, left, mid, inner - left - mid - 2 * GAP, sensors, has_gpu)


CONDENSED_UTIL_CELLS: Final = 8
"""``100 %`` with its gaps."""


def _between(low: int, value: int, high: int) -> int:
    return max(low, min(value, high))
