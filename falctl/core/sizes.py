"""Bytes as people read them: the one place that chooses units and digits."""

from __future__ import annotations

from typing import Final

from falctl.core.types import GiB, MiB

KiB: Final = 1 << 10


def size_text(size_bytes: float) -> str:
    """Return a size with its unit, in three digits or so: ``6.46 GiB``, ``12 MiB``, ``4 KiB``, ``512 bytes``."""
    if size_bytes >= 0.0995 * GiB:
        return f"{gib_text(size_bytes)} GiB"
    for unit, name in ((MiB, "MiB"), (KiB, "KiB")):
        if size_bytes >= 0.9995 * unit:
            return f"{size_bytes / unit:.0f} {name}"
    return f"{size_bytes:.0f} bytes"


def gib_text(size_bytes: float) -> str:
    """Return a size in GiB, without the unit, in five characters at most up to 9,999: ``6.46``, ``61.2``."""
    value = size_bytes / GiB
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 9999.5 else f"{value:,.0f}"
