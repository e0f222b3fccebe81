"""
When a model is loaded ahead again whose load its runner did not survive.

It may have been the model that killed the runner, or a person, or the kernel for want of memory; a router cannot know. So
it is tried again after a pause that is long enough not to be taken for a crash loop (`falctl.core.lifecycle`), and when
that has failed as often as there are pauses, no more, until the configuration is read anew or somebody has it loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, TypeAlias

PAUSES_S: Final = (60.0, 600.0)

Model: TypeAlias = tuple[str, str]
"""The alias of its app, and its name."""


@dataclass(slots=True)
class Deaths:
    """Owner of what runners have died of, as far as anybody can tell."""

    _deaths: dict[Model, tuple[int, float]] = field(default_factory=dict)
    """How many, and until when it is left alone."""

    def note(self, model: Model, *, now: float) -> float | None:
        """A runner has died while it loaded *model* ahead; return in how many seconds to try again; None: not any more."""
        count = self._deaths.get(model, (0, 0.0))[0]
        pause_s = PAUSES_S[count] if count < len(PAUSES_S) else None
        self._deaths[model] = count + 1, float("inf") if pause_s is None else now + pause_s
        return pause_s

    def forbid(self, model: Model, *, now: float) -> bool:
        """Return whether *model* is not to be loaded ahead now."""
        return now < self._deaths.get(model, (0, now))[1]

    def forget(self, model: Model) -> None:
        """*model* has been loaded, or is to be tried whatever was."""
        self._deaths.pop(model, None)
