"""
When an idle model leaves its tier: the device after `keep_alive`, host memory after the same time again.

A part that several models share stays as long as the one that may stay longest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from falctl.core.residency import Held, Part

HEADER: Final = "x-falctl-keep-alive"
"""Client to router to host: how long the models that this request uses may idle, as `cache.keep_alive` says it."""


@dataclass(frozen=True, slots=True)
class Due:
    """The keys of the parts that are to leave the device, and host memory, now; and when the next are to."""

    evict: tuple[str, ...]
    drop: tuple[str, ...]
    next_at: float | None
    """None: as things are, never."""


def due(held: Iterable[Held], *, now: float) -> Due:
    """Return what has been idle for too long *now*."""
    parts: dict[str, tuple[Part, float, float]] = {}
    for model in held:
        for part in model.parts:
            _, vram_at, ram_at = parts.get(part.key, (part, -math.inf, -math.inf))
            parts[part.key] = (part, max(vram_at, _end(model, 1)), max(ram_at, _end(model, 2)))
    evict = [p.key for p, vram_at, _ in parts.values() if p.tier == "vram" and vram_at <= now]
    # What leaves the device now may have to leave host memory, too.
    off = [(p.key, at) for p, _, at in parts.values() if p.host and (p.tier == "ram" or p.key in evict)]
    drop = [key for key, at in off if at <= now]
    later = [at for p, at, _ in parts.values() if p.tier == "vram" and now < at < math.inf]
    later += [at for _, at in off if now < at < math.inf]
    return Due(tuple(evict), tuple(drop), min(later, default=None))


def keep_until(model: Held, *, tier: str) -> float | None:
    """Return when *model*, which is in *tier*, leaves it unless it is used before; None: it does not."""
    at = math.inf if tier == "disk" else _end(model, 1 if tier == "vram" else 2)
    return None if math.isinf(at) else at


def _end(model: Held, times: int) -> float:
    if model.kept or model.keep_alive_s is None:
        return math.inf
    return model.used_at + times * model.keep_alive_s
