"""
Which app a queued job is for: every app has a lane of its own, in which its jobs wait and are attempted.

A job keeps the app that it was submitted to. One whose app is not configured any more is not lost and not given to
another: it waits in a lane without runners until falctl has that app again, its client cancels it, or its start
deadline passes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from falctl.core.types import RequestId
from falctl.router.dispatch.apps import UNNAMED, Apps, LocalApp
from falctl.router.fal.address import alias_of
from falctl.router.jobs.attempts import Attempts
from falctl.router.jobs.envelope import Envelope
from falctl.router.jobs.live import Live
from falctl.router.jobs.waiters import Waiters


@dataclass(frozen=True, slots=True)
class Lane:
    """The jobs of one app."""

    app: LocalApp | None
    """None: it is not configured, and nothing is ever sent."""
    waiters: Waiters
    attempts: Attempts | None
    undecided: dict[RequestId, Live] = field(default_factory=dict)
    """
    Jobs with an attempt that a former router left: what that means is for the app to say, which has not been heard.
    """

    @property
    def asks_first(self) -> bool:
        """Return whether the app is yet to say what it wants to be tried again."""
        return self.app is not None and self.app.settings is None


def lane_name(apps: Apps, envelope: Envelope) -> str:
    """Return the alias of the app that a job is for, of those that run or of one that does not."""
    if envelope.alias != UNNAMED or apps.named(UNNAMED) is not None:
        return envelope.alias
    # It was submitted when falctl had one app, whose name was not asked for.
    [only, *others] = apps
    return alias_of(envelope.app) if others else only.alias
