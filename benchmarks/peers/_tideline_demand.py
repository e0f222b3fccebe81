"""What Tideline knows of the models that come next: counts decayed at four half-lives, and each client's last wish."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from falctl.core.types import Hint

HALF_LIVES: Final = (8, 72, 648, 5832)
"""In requests."""
_LN2: Final = 0.693
_CLIENT_AGE: Final = 30
_CLIENT_AGE_MAX: Final = 1000


@dataclass(slots=True)
class Demand:
    """Feed it every arrival. *theta*: the weight of the clients."""

    theta: float
    n: int = 0
    gap_s: float = 0.0
    """Moving mean of the time between arrivals; 0 before the second."""
    _at: float | None = None
    _counts: dict[Hint, tuple[int, list[float]]] = field(default_factory=dict)
    _last: dict[str, Hint] = field(default_factory=dict)
    _votes: dict[Hint, dict[str, int]] = field(default_factory=dict)
    _memo: dict[Hint, float] = field(default_factory=dict)

    def arrived(self, hint: Hint, client: str, now: float) -> None:
        """Take in one request."""
        self.n += 1
        self._memo.clear()
        at, sums = self._counts.get(hint, (self.n, [0.0] * len(HALF_LIVES)))
        age = self.n - at
        self._counts[hint] = (
            self.n,
            [v * 0.5 ** (age / half) + 1 for v, half in zip(sums, HALF_LIVES, strict=True)],
        )
        if self._at is not None:
            gap_s = now - self._at
            self.gap_s = self.gap_s + 0.01 * (gap_s - self.gap_s) if self.gap_s else gap_s
        self._at = now
        if client in self._last:
            self._votes[self._last[client]].pop(client, None)
        self._last[client] = hint
        self._votes.setdefault(hint, {})[client] = self.n

    def share(self, hint: Hint) -> float:
        """Return the share of *hint* in what comes next."""
        if hint not in self._memo:
            self._memo[hint] = self._share(hint)
        return self._memo[hint]

    def rate(self, hint: Hint) -> float:
        """Return the requests per second for *hint*."""
        return self.share(hint) / max(self.gap_s or 1.0, 1e-9)

    def _share(self, hint: Hint) -> float:
        at, sums = self._counts.get(hint, (self.n, [0.0] * len(HALF_LIVES)))
        age = self.n - at
        counted: float = sum(
            v * 0.5 ** (age / half) * _LN2 / min(half, _LN2 * self.n + 1)
            for v, half in zip(sums, HALF_LIVES, strict=True)
        )
        votes = self._votes.get(hint, {})
        for client in [c for c, at in votes.items() if self.n - at > _CLIENT_AGE_MAX]:
            del votes[client], self._last[client]
        voted = sum(1 / (self.n - at + _CLIENT_AGE) for at in votes.values())
        return (1 - self.theta) * counted / len(HALF_LIVES) + self.theta * voted / 2
