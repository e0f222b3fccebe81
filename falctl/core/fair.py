"""
Turns between clients: fair queueing, in the currency of arrival times.

A client's request is *due* when it arrived, or, behind the client's own backlog, when that would have been served if
the client had the whole fleet to itself. So the hundredth request of a batch is due long after the batch came, and a
single request of another client comes before most of it; a client alone is not slowed down, because its requests
keep their order and nobody else's are before them. This is start-time fair queueing (Goyal, Vin, Cheng 1996) with
real time as virtual time. The priorities of a client are apart: a night's batch of low ones holds up nobody's normal
request, its own client's neither.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from falctl.core.types import Priority

LOW_S: Final = 600.0
"""A low-priority request is due this much later: behind everything normal, but not for ever."""
CLIENTS_MAX: Final = 4096


@dataclass(slots=True)
class FairShare:
    """Remembers until when each client's backlog reaches. ``share``: how much of it counts, 0 is first come first served."""

    share: float = 1.0
    _until: OrderedDict[tuple[str, Priority], float] = field(default_factory=OrderedDict)

    def due(self, client: str, priority: Priority, share_s: float, *, now: float) -> float:
        """Return when a request is due that would keep the whole fleet busy for *share_s* seconds."""
        late_s = LOW_S if priority == "low" else 0.0
        if not client or not self.share:
            return now + late_s
        account = (client, priority)
        start = max(now, self._until.get(account, now))
        self._until[account] = start + self.share * share_s
        self._until.move_to_end(account)
        if len(self._until) > CLIENTS_MAX:
            self._until.popitem(last=False)
        return start + late_s

    def refund(self, client: str, priority: Priority, share_s: float) -> None:
        """Take back what `due` counted for a request that has left without being served."""
        account = (client, priority)
        if account in self._until:
            self._until[account] -= self.share * share_s
