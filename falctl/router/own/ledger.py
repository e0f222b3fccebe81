"""What the router counts and remembers for people: rates, latencies, hits, and a tail of events."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final

from falctl.board.rows import EventRow
from falctl.clock import monotonic_s
from falctl.core.rates import LatencyWindow, RateWindow
from falctl.core.types import RequestId

EVENTS_MAX: Final = 64
_RATE_WINDOW_S: Final = 60.0
_LATENCIES: Final = 512
_STATUSES_MAX: Final = 4096
"""As many as the scheduler remembers requests."""


class Ledger:
    """Counts since this router started. ``changed`` is set by every entry and cleared by who publishes them."""

    def __init__(self) -> None:
        self.started_at = monotonic_s()
        self.served = 0
        self.hits = 0
        self.misses = 0
        self.refused = 0
        self.webhooks_failing = 0
        """Tried in vain, and to be tried again."""
        self.changed = True
        self.events: deque[EventRow] = deque(maxlen=EVENTS_MAX)
        self._statuses: OrderedDict[RequestId, int] = OrderedDict()
        self._rate = RateWindow(window_s=_RATE_WINDOW_S, started_at=self.started_at)
        self._latencies = LatencyWindow(size=_LATENCIES)

    def begin(self, *, hit: bool) -> None:
        """A request with a hint has started on a runner that was warm for it (*hit*), or was not."""
        if hit:
            self.hits += 1
        else:
            self.misses += 1
        self.changed = True

    def finish(self, *, arrived_at: float) -> None:
        """The last byte of an app's answer has gone out."""
        now = monotonic_s()
        self.served += 1
        self._rate.add(now=now)
        self._latencies.add(now - arrived_at)
        self.changed = True

    def answer(self, request: RequestId, status: int) -> None:
        """A direct request is answered with *status*."""
        self._statuses[request] = status
        if len(self._statuses) > _STATUSES_MAX:
            self._statuses.popitem(last=False)

    def status(self, request: RequestId) -> int | None:
        """Return what a direct request was answered with; None: nothing yet, or too long ago."""
        return self._statuses.get(request)

    def refuse(self) -> None:
        """A request was refused for want of room or runners."""
        self.refused += 1
        self.changed = True

    def fail_webhooks(self, more: int) -> None:
        """So many *more* webhooks, or fewer, have been tried in vain and will be tried again."""
        if more:
            self.webhooks_failing += more
            self.changed = True

    def note(self, text: str) -> None:
        """Put a line on the tail of events."""
        self.events.append(EventRow(monotonic_s(), text))
        self.changed = True

    @property
    def rate_rps(self) -> float:
        return self._rate.rate(now=monotonic_s())

    def quantiles(self) -> tuple[float, ...]:
        """Return median and 95th percentile of the latency, in seconds."""
        return self._latencies.quantiles(0.5, 0.95)
