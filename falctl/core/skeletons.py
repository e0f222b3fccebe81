"""
How many models a cache remembers of which it has no bytes: their modules stand, so that they come back without a library.

They cost little each, but whoever visits hundreds of models once would keep hundreds of module trees and vocabularies.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from falctl.core.types import GiB

SKELETONS_MAX: Final = 64
"""A construction costs 0.1 to 2 s (gpu-cache know-how); who alternates between more models than that reads for longer."""
SKELETON_BYTES_MAX: Final = GiB
"""Of all of them: less than the weights of one small model. An SDXL's modules and tokenizers take some 40 MB."""


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A model whose bytes are on the disk, which nobody uses, has pinned or loads."""

    name: str
    used_at: float
    nbytes: int
    """What its modules hold, roughly."""


def outlived(
    skeletons: Iterable[Skeleton], *, number_max: int = SKELETONS_MAX, bytes_max: int = SKELETON_BYTES_MAX
) -> tuple[str, ...]:
    """Return which are to be forgotten so that both bounds hold, the least recently used first."""
    left = sorted(skeletons, key=lambda one: one.used_at)
    nbytes = sum(one.nbytes for one in left)
    leaving: list[str] = []
    while len(left) > number_max or (left and nbytes > bytes_max):
        one = left.pop(0)
        nbytes -= one.nbytes
        leaving.append(one.name)
    return tuple(leaving)
