"""Since when somebody who looks often has looked without a gap: what is silent while nobody looks is no hang."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

GAP_S: Final = 3.0
"""Who looks four times a second and has not for so long was stopped itself (`docker pause`, a debugger, a machine
that swaps), and those whom it watches perhaps with it: they need a moment for their first sign of life."""


@dataclass(slots=True)
class Lookout:
    """Its owner calls `look` whenever it looks."""

    since_at: float = 0.0
    """When the first look after the last gap was."""
    _last_at: float = float("-inf")

    def look(self, *, now: float) -> None:
        """Note a look."""
        if now - self._last_at > GAP_S:
            self.since_at = now
        self._last_at = now
