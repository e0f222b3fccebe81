"""
Which models will be wanted next: the share of each hint in the coming requests, and their rate.

Two signals. Counts of each hint, decayed at four half-lives from 8 to 5,832 requests and averaged: together a
memory whose weight falls like a power law, as the reuse of models in GenTD26 does (LRU stack distance p50 2, p90
11, p99 43). And the clients: 71 % of a client's requests there name the model of its previous one, so every client
votes for its last hint with weight 1 / (age in requests + 30). Where few clients vote, as when everybody comes from
this machine's one address, the counts make up for the votes that are missing: the sum of all shares stays the same.

Source: the policy "Tideline", whose halves were tuned on the public half of that trace.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Self

from falctl.core.checks import amount, part, rows, text, whole
from falctl.core.types import Hint

HALF_LIVES: Final = (8, 72, 648, 5832)
"""In requests."""
CLIENT_WEIGHT: Final = 0.7
CLIENT_AGE: Final = 30
CLIENTS_MAX: Final = 1000
"""Requests after which a silent client's vote is forgotten; so the clients that vote are bounded, too."""
TOTAL: Final = 0.56
"""Of all shares, at least: what counts and votes add up to in GenTD26 is 0.54 to 0.66, and `auto` was tuned there."""
VOTES_COUNTED_EVERY: Final = 16
"""Requests between two counts of all votes: 1,000 clients take some 50 us."""
HINTS_MAX: Final = 8192
_LN2: Final = 0.6931471805599453
_GAP_WEIGHT: Final = 0.01
"""Of the newest gap between two arrivals, once there are enough. A pause counts until it doubles the mean, no more:
after a night it is the rate of the day before that tells what is coming, not the night."""
_TABLED: Final = 512
_DECAYS: Final = tuple(tuple(0.5 ** (age / half) for age in range(_TABLED)) for half in HALF_LIVES)
"""What a count of each half-life has decayed to after so many requests; powers take most of a decision's time."""


@dataclass(slots=True)
class _Count:
    at: int
    sums: list[float]


@dataclass(slots=True)
class Demand:
    """Feed it every arrival. Instants are monotonic seconds."""

    n: int = 0
    gap_s: float = 0.0
    """Moving mean of the time between two arrivals; 0 before the second."""
    _at: float | None = None
    _counts: OrderedDict[Hint, _Count] = field(default_factory=OrderedDict)
    _last: OrderedDict[str, tuple[Hint, int]] = field(default_factory=OrderedDict)
    _votes: dict[Hint, dict[str, int]] = field(default_factory=dict)
    _all_votes: float = 0.0
    """The weight of all votes together, as it was a few requests ago."""
    _memo: dict[Hint, float] = field(default_factory=dict)

    def arrived(self, hint: Hint, client: str, *, now: float) -> None:
        """Take in one request."""
        self.n += 1
        self._memo.clear()
        self._count(hint)
        if self._at is not None:
            self._pass(now - self._at)
        self._at = now
        if client:
            self._vote(hint, client)
        if self.n % VOTES_COUNTED_EVERY == 1:
            self._all_votes = sum(1.0 / (self.n - at + CLIENT_AGE) for _, at in self._last.values())

    def share(self, hint: Hint) -> float:
        """Return the share of *hint* in what comes next, 0 to about 1."""
        known = self._memo.get(hint)
        if known is None:
            known = self._memo[hint] = self._share(hint)
        return known

    def hints(self) -> Iterator[Hint]:
        """Iterate over all hints that are remembered."""
        return iter(self._counts)

    def rate(self, hint: Hint) -> float:
        """Return the requests per second for *hint*."""
        return self.share(hint) / max(self.gap_s, 1e-9) if self.gap_s else 0.0

    def dump(self) -> dict[str, object]:
        """Return counts and pace, as JSON can hold it; clients are not kept."""
        counts = [[hint, self.n - count.at, *count.sums] for hint, count in self._counts.items()]
        return {"n": self.n, "gap_s": self.gap_s, "counts": counts}

    @classmethod
    def restored(cls, table: object) -> Self:
        """Return what was dumped; the time until the next arrival is no gap. Raises ValueError: it cannot have been."""
        new = cls(n=whole(part(table, "n")), gap_s=amount(part(table, "gap_s")))
        for hint, age, *sums in rows(part(table, "counts"), text, whole, *[amount] * len(HALF_LIVES)):
            new._counts[Hint(hint)] = _Count(new.n - age, sums)
            new._trim()
        return new

    def _pass(self, gap_s: float) -> None:
        if not self.gap_s:
            self.gap_s = gap_s
            return
        weight = max(_GAP_WEIGHT, 1.0 / (self.n - 1))
        self.gap_s += weight * (min(gap_s, self.gap_s * (1.0 + 1.0 / weight)) - self.gap_s)

    def _share(self, hint: Hint) -> float:
        counted = 0.0
        if (count := self._counts.get(hint)) is not None:
            age = self.n - count.at
            grown = _LN2 * self.n + 1
            for half, value, decays in zip(HALF_LIVES, count.sums, _DECAYS, strict=True):
                decay = decays[age] if age < _TABLED else 0.5 ** (age / half)
                counted += value * decay / min(half, grown)
            counted *= _LN2
        votes = self._votes.get(hint, {})
        voted = sum(1.0 / (self.n - at + CLIENT_AGE) for at in votes.values())
        weight = max(TOTAL - CLIENT_WEIGHT / 2 * self._all_votes, 1 - CLIENT_WEIGHT)
        return weight * counted / len(HALF_LIVES) + CLIENT_WEIGHT / 2 * voted

    def _count(self, hint: Hint) -> None:
        count = self._counts.get(hint)
        if count is None:
            self._counts[hint] = _Count(self.n, [1.0] * len(HALF_LIVES))
            self._trim()
            return
        age = self.n - count.at
        count.sums = [v * 0.5 ** (age / half) + 1 for v, half in zip(count.sums, HALF_LIVES, strict=True)]
        count.at = self.n
        self._counts.move_to_end(hint)

    def _trim(self) -> None:
        if len(self._counts) > HINTS_MAX:
            self._counts.popitem(last=False)

    def _vote(self, hint: Hint, client: str) -> None:
        self._forget(client)
        self._last[client] = (hint, self.n)
        self._votes.setdefault(hint, {})[client] = self.n
        while self._last and self.n - next(iter(self._last.values()))[1] > CLIENTS_MAX:
            self._forget(next(iter(self._last)))

    def _forget(self, client: str) -> None:
        if (last := self._last.pop(client, None)) is not None:
            votes = self._votes[last[0]]
            del votes[client]
            if not votes:
                del self._votes[last[0]]


def erlang_b(load: float, servers: int) -> float:
    """Return the share of arrivals that find all *servers* busy at this offered *load* (Erlang's B formula)."""
    blocked = 1.0
    for n in range(1, servers + 1):
        blocked = load * blocked / (n + load * blocked)
    return blocked
