"""A job that has not ended, as the router holds it, and what it is to those who only see a part of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from falctl.clock import monotonic_s, wall_s
from falctl.core import jobs
from falctl.core.backlog import Entry
from falctl.core.events import Arrived, Dispatch
from falctl.core.types import RequestId
from falctl.router.dispatch.driver import Decision
from falctl.router.jobs.courier import Delivered
from falctl.router.jobs.envelope import Envelope, unpack


@dataclass(slots=True)
class Live:
    """
    A job that has not ended, with what its owner must remember.

    Tens of thousands may wait, so it consists of few objects: the garbage collector walks them all, in mid-request.
    """

    job: jobs.Job
    packed: bytes
    """Its envelope as it stands on the disk."""
    lane: str
    """The alias of its app, as `falctl.router.jobs.lanes` names it."""
    entry: Entry | None = None
    """None: its number is not known, because it is not durable yet."""
    decision: Decision | None = None
    dispatch: Dispatch | None = None
    """The slot that it has; None: none."""
    bounced: Dispatch | None = None
    """The slot that it was not let into, until the scheduler has been told."""
    body: asyncio.Task[bytes | None] | None = None
    """What was submitted, on its way from the disk while an attempt is being noted there; None: nobody reads it."""
    delivered: Delivered | None = None
    """What became of its last attempt."""
    cancelled: asyncio.Event | None = None
    """Set when its cancellation is durable, or it has ended; None: nobody waits for that."""

    @property
    def envelope(self) -> Envelope:
        """Return all of the request but its body, made anew."""
        return unpack(self.packed)


Tell: TypeAlias = Callable[[Live, jobs.Event], None]
"""Tells the machine of a job what happened."""


def entry_of(request: RequestId, number: int, envelope: Envelope) -> Entry:
    """Return what the backlog is to know of a job."""
    start_by = envelope.start_by
    hint = None if envelope.wanted is None else envelope.wanted.hint
    at = None if start_by is None else monotonic_s() + start_by - wall_s()
    return Entry(request, number, hint, envelope.priority, at)


def arrived(live: Live) -> Arrived:
    """Return what the scheduler is to know of a job."""
    envelope, entry = live.envelope, live.entry
    assert entry is not None
    return Arrived(
        entry.request,
        envelope.wanted,
        envelope.client,
        priority=entry.priority,
        start_by=entry.start_by,
        bounded=False,
        again=live.job.attempts > 0,
    )
