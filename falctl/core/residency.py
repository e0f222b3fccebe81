"""
Which models leave a runner's cache: least recently used first, never a pinned one.

When every model is pinned nothing leaves and the cache holds more than its bound for a while: a lease never waits
for another lease, so two requests that each hold a model cannot block each other for ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

Tier: TypeAlias = Literal["vram", "ram", "disk"]
"""Where bytes are: on the device; in host memory; only in their files, while the modules stand (a skeleton)."""

Verdict: TypeAlias = Literal["hit", "join", "ram", "disk"]
"""How a lease got its model: it was there, another lease was loading it, or this one loaded it, and from where."""


@dataclass(frozen=True, slots=True)
class Part:
    """One component's weights, which several models may share."""

    key: str
    nbytes: int
    """What it takes on the device, and in host memory."""
    tier: Tier
    host: bool = True
    """Whether host memory has its bytes, too: leaving the device costs nothing then."""


@dataclass(frozen=True, slots=True)
class Resident:
    """A model in a cache, or on its way in, as it was at one moment."""

    name: str
    state: Literal["loading", "ready"]
    used_at: float
    pins: int
    load_s: float = 0.0
    """How long its load took; 0 while it loads."""


def victims(residents: Iterable[Resident], *, models_max: int, incoming: int) -> tuple[str, ...]:
    """
    Return the models to drop, in that order, so that *incoming* more make at most *models_max*.

    Fewer than that are returned when the others are pinned. Of two used at the same instant the one that comes
    first in *residents* leaves first.
    """
    present = tuple(residents)
    surplus = max(0, len(present) + incoming - models_max)
    unpinned = sorted((r for r in present if r.pins == 0), key=lambda r: r.used_at)
    return tuple(r.name for r in unpinned[:surplus])
