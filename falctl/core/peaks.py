"""
What drawings were seen to take beside the weights, and what to expect of the next: a maximum per kind of drawing.

A kind is (pipeline class, size, images, dtype, whether it is decoded in tiles). Until one was seen the formulas of
`falctl.core.activations` tell; from then on the most that was seen and a tenth more, for allocators do not repeat
themselves to the byte. One that ran out of memory needs more than was expected, so more is expected from then on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from typing import Any, Final

from falctl.core import checks
from falctl.core.activations import Drawing, decode_bytes, denoise_bytes
from falctl.core.fit import DrawingPeaks

VERSION: Final = 1
"""Of the format and of what its figures mean; others are not read."""
KINDS_MAX: Final = 1024
"""The kinds that have not changed for the longest time are forgotten."""
TILE_SIDE: Final = 512
"""Pixels along the side of the tiles that are decoded one at a time, where there is too little room for all."""
_MARGIN: Final = 1.1
_RAISE: Final = 1.25
"""After memory ran out."""
_ENCODE_BYTES: Final = 256 << 20
"""What a text encoder takes at most: T5-XXL with two prompts of 512 tokens, its attention in float32 the most of it."""
_ENCODE_SHARE: Final = 1 / 8
"""Of its weights, for smaller ones."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Drawings that take the same."""

    pipeline_class: str
    width: int
    height: int
    images: int
    dtype: str
    tiled: bool = False


@dataclass(frozen=True, slots=True)
class Draws:
    """One drawing by one pipeline, as far as the memory that it takes goes."""

    pipeline_class: str
    drawing: Drawing
    dtype: str
    element_bytes: int
    encoder_bytes: int = 0
    """Weights of the largest text encoder."""

    def kind(self, *, tiled: bool = False) -> Kind:
        """Return its kind."""
        images = self.drawing.images * (2 if self.drawing.guided else 1)
        size = self.drawing.width, self.drawing.height
        return Kind(self.pipeline_class, *size, images, self.dtype, tiled)


class LearntPeaks:
    """The most that each kind was seen to take, in bytes."""

    def __init__(self) -> None:
        self._most: dict[Kind, int] = {}  # the one that changed last is last

    def __len__(self) -> int:
        return len(self._most)

    def expected(self, kind: Kind) -> int | None:
        """Return what to keep free for one of *kind*; None: none was seen."""
        most = self._most.get(kind)
        return None if most is None else int(most * _MARGIN)

    def seen(self, kind: Kind, nbytes: int) -> bool:
        """Note that one took *nbytes*; return whether that is more than was known."""
        if nbytes <= self._most.get(kind, 0):
            return False
        self._most.pop(kind, None)
        self._most[kind] = nbytes
        while len(self._most) > KINDS_MAX:
            del self._most[next(iter(self._most))]
        return True

    def ran_out(self, kind: Kind, expected_bytes: int) -> bool:
        """Note that *expected_bytes* were not enough for one; return whether more is expected from now on."""
        return self.seen(kind, int(expected_bytes * _RAISE))

    def merge(self, other: LearntPeaks) -> bool:
        """Take over what *other* has seen and this has not; return whether that was anything."""
        return any([self.seen(kind, nbytes) for kind, nbytes in other._most.items()])  # noqa: C419 - all of them

    def dump(self) -> dict[str, Any]:
        """Return all of it, as JSON can hold it."""
        return {"version": VERSION, "peaks": [[*astuple(kind), most] for kind, most in self._most.items()]}

    @classmethod
    def restored(cls, table: object) -> LearntPeaks:
        """Return what was dumped. Raises ValueError: it is of another version, or cannot have been seen."""
        if (version := checks.part(table, "version")) != VERSION:
            msg = f"it is of version {version!r:.20}, not {VERSION}"
            raise ValueError(msg)
        peaks = cls()
        for *kind, nbytes in checks.rows(checks.part(table, "peaks"), *_COLUMNS):
            peaks.seen(Kind(*kind), nbytes)
        return peaks


def expected_peaks(peaks: LearntPeaks, draws: Draws) -> DrawingPeaks:
    """
    Return what each phase of *draws* is expected to take.

    Learnt figures are of whole drawings, of which the decoder is the dearest phase as a rule; with tiles the others are,
    too, so that what was seen with tiles stands for all of them.
    """
    most, most_tiled = peaks.expected(draws.kind()), peaks.expected(draws.kind(tiled=True))
    drawing, size = draws.drawing, draws.element_bytes
    tiled = replace(drawing, tile=TILE_SIDE)
    denoise = denoise_bytes(draws.pipeline_class, drawing, element_bytes=size)
    return DrawingPeaks(
        encode=_at_most(min(_ENCODE_BYTES, int(draws.encoder_bytes * _ENCODE_SHARE)), most),
        denoise=most_tiled or _at_most(denoise, most),
        decode=most or max(decode_bytes(drawing, element_bytes=size), most_tiled or 0),
        decode_tiled=most_tiled or _at_most(decode_bytes(tiled, element_bytes=size), most),
    )


def _at_most(nbytes: int, most: int | None) -> int:
    return nbytes if most is None else min(nbytes, most)


def _truth(value: object) -> bool:
    if isinstance(value, bool):
        return value
    msg = f"{ascii(value)[:80]} is not true or false"
    raise ValueError(msg)


_COLUMNS: Final[tuple[Callable[[object], Any], ...]] = (
    checks.text,
    checks.whole,
    checks.whole,
    checks.whole,
    checks.text,
    _truth,
    checks.whole,
)
