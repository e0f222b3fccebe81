"""What waits: in order of arrival, and by hint, so that no decision has to look at every request."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from falctl.core.types import Hint, Priority, RequestId, Wanted


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request that no runner has. ``order`` is its place in order of arrival and survives a bounce."""

    request: RequestId
    wanted: Wanted | None
    client: str
    arrived_at: float
    order: int
    attempts: int = 0
    due: float = 0.0
    """Its arrival as far as turns go: later for what comes behind a client's own backlog, or has low priority."""
    start_by: float | None = None
    priority: Priority = "normal"
    share_s: float = 0.0
    """What its client was charged for it; see `falctl.core.fair`."""
    direct: bool = True
    """Its client waits for an answer; False: it is a job of the durable queue."""

    @property
    def hint(self) -> Hint | None:
        """Return the wanted hint, whatever its source; None if there is none."""
        return None if self.wanted is None else self.wanted.hint


@dataclass(slots=True)
class _Group:
    """Those who wait for one hint, by due; a client's turn may come before those of many who came before it."""

    keys: list[tuple[float, int]] = field(default_factory=list)
    waiting: list[Waiting] = field(default_factory=list)

    def add(self, waiting: Waiting) -> None:
        key = _by_due(waiting)
        at = len(self.keys) if not self.keys or self.keys[-1] < key else bisect_left(self.keys, key)
        self.keys.insert(at, key)
        self.waiting.insert(at, waiting)

    def remove(self, waiting: Waiting) -> None:
        at = bisect_left(self.keys, _by_due(waiting))
        assert self.waiting[at] is waiting
        del self.keys[at], self.waiting[at]


@dataclass(slots=True)
class WaitingQueue:
    """The one central queue: every request is in ``_all`` by order of arrival, and in the group of its hint by due."""

    _all: dict[RequestId, Waiting] = field(default_factory=dict)
    _groups: dict[Hint | None, _Group] = field(default_factory=dict)
    _start_by: dict[RequestId, float] = field(default_factory=dict)
    """Only of those that have a deadline: mostly nobody has, and then nothing needs to be looked through."""
    _clients: dict[str, int] = field(default_factory=dict)
    """How many of each client wait; nobody is in it with none."""
    _behind: dict[Hint, int] = field(default_factory=dict)
    """How many more wait for each hint behind those that are here; no hint is in it with none."""
    _behind_sum: int = 0

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, request: RequestId) -> bool:
        return request in self._all

    def __iter__(self) -> Iterator[Waiting]:
        """Iterate over everything that waits, oldest first."""
        return iter(self._all.values())

    def add(self, waiting: Waiting) -> None:
        """Put *waiting* in its place by ``order``: at the end, unless it comes back from a bounce."""
        assert waiting.request not in self._all
        last = self._newest()
        self._all[waiting.request] = waiting
        if last is not None and last.order > waiting.order:
            self._all = dict(sorted(self._all.items(), key=lambda item: item[1].order))
        if waiting.start_by is not None:
            self._start_by[waiting.request] = waiting.start_by
        if (group := self._groups.get(waiting.hint)) is None:
            group = self._groups[waiting.hint] = _Group()
        group.add(waiting)
        self._clients[waiting.client] = self._clients.get(waiting.client, 0) + 1

    def pop(self, request: RequestId) -> Waiting | None:
        """Take *request* out; None if it does not wait."""
        waiting = self._all.pop(request, None)
        if waiting is not None:
            self._start_by.pop(request, None)
            group = self._groups[waiting.hint]
            group.remove(waiting)
            if not group.waiting:
                del self._groups[waiting.hint]
            self._clients[waiting.client] -= 1
            if not self._clients[waiting.client]:
                del self._clients[waiting.client]
        return waiting

    def get(self, request: RequestId) -> Waiting | None:
        """Return *request* as it waits; None: it does not."""
        return self._all.get(request)

    def late(self, now: float) -> list[RequestId]:
        """Return what should have started by *now*."""
        return [request for request, at in self._start_by.items() if at <= now]

    def oldest(self) -> Waiting | None:
        """Return the request that waits longest; None when nothing waits."""
        return next(iter(self._all.values()), None)

    def _newest(self) -> Waiting | None:
        """Return the request that came last; None when nothing waits."""
        return next(reversed(self._all.values()), None)

    def head(self, hint: Hint | None) -> Waiting | None:
        """Return the request for *hint* whose turn is first; None: nobody waits for it."""
        group = self._groups.get(hint)
        return None if group is None else group.waiting[0]

    def group(self, hint: Hint | None) -> Iterator[Waiting]:
        """Iterate over those who wait for *hint*, the one whose turn is first at first."""
        group = self._groups.get(hint)
        return iter(() if group is None else group.waiting)

    def count(self, hint: Hint | None) -> int:
        """Return how many wait for *hint*."""
        group = self._groups.get(hint)
        return 0 if group is None else len(group.waiting)

    def put_behind(self, hint: Hint, count: int) -> None:
        """Note that *count* more wait for *hint* than are here."""
        self._behind_sum += count - self._behind.pop(hint, 0)
        if count:
            self._behind[hint] = count

    def count_ahead(self, hint: Hint) -> float:
        """
        Return how many wait for *hint* as far as copies go: with those behind, as far as they exceed the others'.

        What waits out of sight for every model alike is no reason for a further copy of any: simulated with all of
        them, 26 models on 8 places were loaded half as often again, and took half as long again (tests/sim/test_hidden.py).
        """
        group = self._groups.get(hint)  # asked for many times in every decision
        count = 0 if group is None else len(group.waiting)
        if not self._behind or not count or not (behind := self._behind.get(hint, 0)):
            return count
        others = (self._behind_sum - behind) / max(len(self._groups) - 1, 1)
        return count + max(behind - others, 0.0)

    def count_of(self, client: str) -> int:
        """Return how many of *client* wait."""
        return self._clients.get(client, 0)

    @property
    def clients(self) -> int:
        """Return how many clients have something waiting."""
        return len(self._clients)

    def hints(self) -> Iterator[Hint | None]:
        """Iterate over the hints that somebody waits for; None stands for no hint."""
        return iter(self._groups)

    def heads(self) -> Iterator[Waiting]:
        """Iterate over the request of each hint whose turn is first, in no particular order."""
        return (group.waiting[0] for group in self._groups.values())

    def check(self) -> None:
        """Assert that both indexes tell the same story, in order of arrival."""
        assert sum(len(group.waiting) for group in self._groups.values()) == len(self._all)
        assert self._start_by == {w.request: w.start_by for w in self if w.start_by is not None}
        assert self._behind_sum == sum(self._behind.values())
        assert self._clients == Counter(w.client for w in self)
        orders = [waiting.order for waiting in self._all.values()]
        assert orders == sorted(orders)
        for hint, group in self._groups.items():
            assert group.waiting, "an empty group must not stay"
            assert all(w.hint == hint and w.request in self._all for w in group.waiting)
            assert group.keys == sorted(map(_by_due, group.waiting)) == list(map(_by_due, group.waiting))


def _by_due(waiting: Waiting) -> tuple[float, int]:
    return (waiting.due, waiting.order)
