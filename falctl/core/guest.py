"""
How we are a guest on a card that other programs use, too: when they grow, our idle models give way.

What counts is the free memory of the card, as NVML tells it, against `cache.reserve_vram`; and whose doing it is that
there is less. Others' bytes are what is used less what our own runners' allocators hold. They are known as of the last
*calm* sample, one with enough free; only as much as they have grown since then is given way to, since a drawing of our
own that takes the rest of the card is to have it. CUDA contexts count as others', which does no harm: they do not grow.

The two sides are not sampled at one instant. So it takes several samples in a row, and the least of what each asks for
counts; and after an order nothing is asked for until its effect must be seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SAMPLES: Final = 3
"""In a row, a second apart, before anything leaves."""
SETTLE_S: Final = 8.0
"""From an order until the next: VRAM may take 5 s to come back, and a sample is up to 2 s old."""
RECOVERED: Final = 0.75
"""Of what was given back, the share that must be seen free (Ollama's; the rest may be somebody else's already)."""
RECOVERY_S: Final = 5.0
"""How long to wait for it at most."""


@dataclass(frozen=True, slots=True)
class Look:
    """One sample of a card, in bytes, and what our runners on it said that they hold."""

    at: float
    total_bytes: int
    used_bytes: int
    ours_bytes: int

    @property
    def free_bytes(self) -> int:
        return max(0, self.total_bytes - self.used_bytes)

    @property
    def others_bytes(self) -> int:
        """Return what is used and not ours."""
        return max(0, self.used_bytes - self.ours_bytes)


class Guest:
    """What one runner remembers of its card. Instants are in seconds of one clock."""

    def __init__(self) -> None:
        self._calm_others_bytes = 0
        self._asked: list[int] = []
        """What each of the last samples in a row asks for."""
        self._seen_at = float("-inf")
        self._ordered_at = float("-inf")

    def heed(self, look: Look, *, reserve_bytes: int) -> int:
        """Return how many bytes our idle models on this card are to free now, all runners together; 0: none."""
        if look.at <= self._seen_at:
            return 0  # no new sample: the card does not answer
        self._seen_at = look.at
        short_bytes = reserve_bytes - look.free_bytes
        if short_bytes <= 0:
            self._calm_others_bytes = look.others_bytes
            self._asked.clear()
            return 0
        if look.at - self._ordered_at < SETTLE_S:
            return 0
        asked_bytes = min(short_bytes, look.others_bytes - self._calm_others_bytes)
        if asked_bytes <= 0:
            self._asked.clear()
            return 0
        self._asked.append(asked_bytes)
        if len(self._asked) < SAMPLES:
            return 0
        least_bytes = min(self._asked)
        self._asked.clear()
        self._ordered_at = look.at
        return least_bytes


def share(nbytes: int, sharers: int) -> int:
    """Return one runner's part of *nbytes* that *sharers* runners on a card free together, rounded up."""
    return -(-nbytes // max(1, sharers))


def recovered(*, before_bytes: int, now_bytes: int, given_back_bytes: int) -> bool:
    """Return whether a card with *before_bytes* free, then *now_bytes*, has what was given back to it in between."""
    return now_bytes - before_bytes >= RECOVERED * given_back_bytes
