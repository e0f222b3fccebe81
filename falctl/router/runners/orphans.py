"""
Requests that a runner may still be executing although nobody hears of them: their connection broke, or their router did.

Such a request has its runner stop it, and whoever wants to send it again is called once no runner can have it in a slot
any more. That happens before the scheduler is told of that slot, so that the request has not lost its place to others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from falctl.core.types import RequestId, RunnerId
from falctl.router.runners.link import Link
from falctl.tasks import spawn


@dataclass(slots=True)
class _Orphan:
    then: Callable[[], None]
    asked: set[Link] = field(default_factory=set)


class Orphans:
    """Owner of who waits for that. *links*: to every runner whose process serves, as they are at any time."""

    def __init__(self, links: Mapping[RunnerId, Link]) -> None:
        self._links = links
        self._orphans: dict[RequestId, _Orphan] = {}

    def when_gone(self, request: RequestId, then: Callable[[], None]) -> None:
        """Have *request* stopped wherever it is executed; call *then* when nobody can be at it, at once if nobody is."""
        self._orphans[request] = _Orphan(then)
        self._look_at(request)

    def look(self) -> None:
        """Slots have been given back, a runner has told of all its slots, or one is gone."""
        for request in tuple(self._orphans):
            self._look_at(request)

    def _look_at(self, request: RequestId) -> None:
        orphan = self._orphans[request]
        holders = [link for link in self._links.values() if link.may_hold(request)]
        if not holders:
            del self._orphans[request]
            orphan.then()
        for link in holders:
            if link.greeted.is_set() and link not in orphan.asked:
                orphan.asked.add(link)
                spawn(link.cancel(request), name=f"cancel-{request}")
