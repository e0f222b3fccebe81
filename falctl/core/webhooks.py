"""
When a webhook is tried again, and who is called at the same time.

fal's schedule: a first try of 15 s as soon as the job has ended, then ten more within two hours, each pause twice the
one before it. A 2xx ends it; anything else, a redirect too, is a failed try. Who answers slowly or not at all holds
only the few slots of one receiver, so that others are called meanwhile.
https://fal.ai/docs/model-endpoints/webhooks
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

RETRIES_MAX: Final = 10

PAUSE_FIRST_S: Final = 7.0
"""Ten pauses that double sum up to 7161 s: the two hours of fal's."""

TIMEOUT_FIRST_S: Final = 15.0
TIMEOUT_RETRY_S: Final = 120.0

AGE_MAX_S: Final = 86400.0
"""With thousands to one slow receiver tries come late: after a day it is given up, so that its result may leave."""

AT_ONCE_MAX: Final = 32
AT_ONCE_OF_ONE_MAX: Final = 4
"""Calls under way, of all receivers and of one."""


def timeout_s(tries: int) -> float:
    """Return how long the try that follows *tries* failed ones may take."""
    return TIMEOUT_RETRY_S if tries else TIMEOUT_FIRST_S


def is_delivered(status: int) -> bool:
    """Return whether an answer of that status ends it."""
    return 200 <= status < 300


def pause_s(tries: int, *, age_s: float) -> float | None:
    """Return how long to wait after *tries* failed ones, *age_s* after the job's end; None: it is given up."""
    assert tries > 0
    if tries > RETRIES_MAX or age_s >= AGE_MAX_S:
        return None
    return PAUSE_FIRST_S * 2.0 ** (tries - 1)


@dataclass(slots=True)
class Lanes:
    """Owner of who is being called."""

    _receivers: dict[int, str] = field(default_factory=dict)

    @property
    def jobs(self) -> tuple[int, ...]:
        """Return the numbers of the jobs whose receivers are being called."""
        return tuple(self._receivers)

    @property
    def free(self) -> int:
        """Return how many more may be called now."""
        return AT_ONCE_MAX - len(self._receivers)

    @property
    def full(self) -> tuple[str, ...]:
        """Return the receivers that are to be called no more for now."""
        receivers = list(self._receivers.values())
        return tuple(sorted({r for r in receivers if receivers.count(r) >= AT_ONCE_OF_ONE_MAX}))

    def take(self, job: int, receiver: str) -> bool:
        """Let *receiver* be called about *job*; False: not now."""
        if job in self._receivers or not self.free or receiver in self.full:
            return False
        self._receivers[job] = receiver
        return True

    def release(self, job: int) -> None:
        """It has been called."""
        del self._receivers[job]
