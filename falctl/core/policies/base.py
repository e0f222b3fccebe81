"""What a policy is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from falctl.core.fleet import Fleet
from falctl.core.queue import WaitingQueue
from falctl.core.types import RequestId, RunnerId


@dataclass(frozen=True, slots=True)
class Choice:
    """A waiting request and the runner with a free slot that it goes to; ``reason`` in a few words, for people."""

    request: RequestId
    runner: RunnerId
    reason: str


class Policy(Protocol):
    """Decides what leaves the queue next. Called with at least one request waiting and one slot free."""

    def choose(self, queue: WaitingQueue, fleet: Fleet, *, now: float) -> Choice | None:
        """Return the next dispatch at instant *now* (monotonic seconds); None: everything that waits waits on."""
        ...
