"""How far the requests are that run, by request: the newest picture of each, and who watches it is woken."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Final

from falctl import wire
from falctl.core.types import RequestId
from falctl.router.runners.fleet import FleetLinks

PREVIEWS_MAX: Final = 256
"""Requests of which a picture is kept, the newest alone: 22 MiB of base64 at most. They leave when they have ended."""


@dataclass(frozen=True, slots=True)
class Preview:
    """A small JPEG in base64. ``number`` tells it from others."""

    number: int
    data: str


class Steps:
    """Owner of the pictures. Of the steps themselves the board knows."""

    def __init__(self, fleet: FleetLinks, *, news: Callable[[RequestId], None]) -> None:
        """*news* is called when a request has done a step, or has ended."""
        self._previews: OrderedDict[RequestId, Preview] = OrderedDict()
        self._numbers = count(1)
        self._news = news
        fleet.stepped = self._hear
        fleet.released.append(self._released)

    def preview(self, request: RequestId) -> Preview | None:
        """Return the newest picture of *request*; None: there is none."""
        return self._previews.get(request)

    def _hear(self, message: wire.Stepped) -> None:
        request = RequestId(message.request)
        if message.preview:
            self._previews[request] = Preview(next(self._numbers), message.preview)
            self._previews.move_to_end(request)
            if len(self._previews) > PREVIEWS_MAX:
                self._previews.popitem(last=False)
        self._news(request)

    def _released(self, request: RequestId) -> None:
        self._previews.pop(request, None)
        self._news(request)
