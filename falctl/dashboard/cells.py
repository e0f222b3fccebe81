"""
What the view's lines are made of: glyphs, numbers in words, bars, safe names, and lines of an exact width.

A name that came from a client is text to show, never an instruction to the terminal: `Pen.safe` is the only way
from such a string onto the screen.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len, set_cell_size
from rich.text import Text

QUIET: Final = "dim"
"""The style of what is read second. Not "bright_black": some palettes make that the background's colour."""

Line = Text
"""One line of the screen."""


@dataclass(frozen=True, slots=True)
class Glyphs:
    """Signs, each one cell wide. None of them is ever the only carrier of a meaning."""

    bar: str
    bar_rest: str
    ready: str
    in_ram: str
    loading: str
    runs: str
    ellipsis: str
    degree: str


UNICODE: Final = Glyphs("━", "─", "●", "○", "◐", "▸", "…", "°")
ASCII: Final = Glyphs("#", "-", "*", "+", "o", ">", "~", " ")


@dataclass(frozen=True, slots=True)
class Pen:
    """Writes for one terminal: in its alphabet, and nothing that moves its cursor."""

    ascii_only: bool = False

    @property
    def glyphs(self) -> Glyphs:
        return ASCII if self.ascii_only else UNICODE

    def safe(self, text: str, *, cells: int) -> str:
        """Return *text* in at most *cells* cells, all of them printable and seen."""
        known = unicodedata.normalize("NFC", text)
        return self.cut("".join(self._safe_char(char) for char in known), cells=cells)

    def cut(self, text: str, *, cells: int) -> str:
        """Return our own *text*, shortened with an ellipsis when it is wider than *cells*."""
        if cell_len(text) <= cells:
            return text
        return set_cell_size(text, max(0, cells - 1)).rstrip() + self.glyphs.ellipsis if cells > 0 else ""

    def _safe_char(self, char: str) -> str:
        if char.isspace():
            return " "
        hidden = not char.isprintable() or cell_len(char) == 0
        return "?" if hidden or (self.ascii_only and not char.isascii()) else char

    def bar(self, share: float, *, cells: int, style: str) -> Line:
        """Return a bar of exactly *cells* cells; anything above zero shows at least one, only a whole fills it."""
        share = min(1.0, max(0.0, share))
        full = round(share * cells)
        if share > 0:
            full = max(1, full)
        if share < 1:
            full = min(cells - 1, full)
        full = max(0, full)
        return Text.assemble((self.glyphs.bar * full, style), (self.glyphs.bar_rest * (cells - full), QUIET))


def ink(text: str, style: str = "") -> Line:
    """Return *text* in *style*. The style is a span of it, so that what is appended later does not inherit it."""
    return Text.assemble((text, style))


def fit(line: Line, cells: int) -> Line:
    """Return *line* with exactly *cells* cells: padded on the right, or cropped."""
    fitted = line.copy()
    fitted.truncate(max(0, cells), overflow="crop", pad=True)
    return fitted


def right(line: Line, cells: int) -> Line:
    """Return *line* with exactly *cells* cells, its text at the right edge."""
    return fit(ink(" " * max(0, cells - line.cell_len)) + line, cells)


def flow(pieces: Sequence[Line], cells: int, *, gap: int = 3) -> list[Line]:
    """Return *pieces* set in as many lines of at most *cells* cells as they need, *gap* cells apart."""
    lines: list[Line] = []
    for piece in pieces:
        if lines and lines[-1].cell_len + gap + piece.cell_len <= cells:
            lines[-1] = lines[-1] + ink(" " * gap) + piece
        else:
            lines.append(piece.copy())
    return lines


def beside(left: Sequence[Line], right_side: Sequence[Line], *, left_cells: int) -> list[Line]:
    """Return two columns as lines; the left one is *left_cells* wide."""
    count = max(len(left), len(right_side))
    blank = Text()
    return [
        fit(left[n] if n < len(left) else blank, left_cells)
        + (right_side[n] if n < len(right_side) else blank)
        for n in range(count)
    ]


def wrap(text: str, cells: int, *, lines_max: int, pen: Pen) -> list[str]:
    """Return safe *text* broken at spaces into at most *lines_max* lines of *cells* cells, the last one shortened."""
    lines: list[str] = []
    for word in text.split():
        if lines and cell_len(lines[-1]) + 1 + cell_len(word) <= cells:
            lines[-1] += f" {word}"
        elif len(lines) == lines_max:
            lines[-1] = pen.cut(f"{lines[-1]} {word}", cells=cells)
            break
        else:
            lines.append(pen.cut(word, cells=cells))
    return lines


def level(percent: float, *, low: float, high: float) -> str:
    """Return the colour of a load: nvitop's three, with its thresholds."""
    return "red" if percent >= high else "yellow" if percent >= low else "green"


def span(seconds: float) -> str:
    """Return a length of time as a person says it: ``45 s``, ``2m 03s``, ``3h 20m``, ``4d 7h``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = int(min(seconds, 1e11))
    if whole < 60:
        return f"{whole} s"
    big, small, names = next(unit for unit in _SPANS if whole >= unit[0])
    return f"{whole // big}{names[0]} {whole % big // small:02d}{names[1]}"


_SPANS: Final = ((86400, 3600, "dh"), (3600, 60, "hm"), (60, 1, "ms"))


def latency(seconds: float) -> str:
    """Return a latency with three digits that matter: ``38 ms``, ``1.24 s``, ``12.3 s``."""
    if seconds <= 0:
        return "-"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"
    return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s" if seconds < 60 else span(seconds)


def rate(per_second: float) -> str:
    """Return a rate in at most four digits."""
    return f"{per_second:.1f}" if per_second < 99.95 else f"{per_second:,.0f}"
