"""
Waiting until memory that was given back can be had: the driver may say so before it is true.

Whoever allocates in between runs out of memory beside a card that looks empty a moment later.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from falctl.clock import monotonic_s
from falctl.core.guest import RECOVERY_S, recovered

log = logging.getLogger(__name__)

POLL_S: Final = 0.25
_FIRST_POLL_S: Final = 0.001
"""Each is twice as long as the one before; as a rule none is needed."""


def wait_recovered(free_bytes: Callable[[], int], *, before_bytes: int, given_back_bytes: int) -> bool:
    """
    Return once `free_bytes()` has grown by about *given_back_bytes* from *before_bytes*; blocks, `RECOVERY_S` at most.

    False: it has not until then, perhaps because another program has taken it; that is logged.
    """
    until_at = monotonic_s() + RECOVERY_S
    never, poll_s = threading.Event(), _FIRST_POLL_S
    while True:
        now_bytes = free_bytes()
        if recovered(before_bytes=before_bytes, now_bytes=now_bytes, given_back_bytes=given_back_bytes):
            return True
        if monotonic_s() >= until_at:
            log.warning(
                "device.not_recovered given_back=%d free_before=%d free_now=%d",
                given_back_bytes,
                before_bytes,
                now_bytes,
            )
            return False
        never.wait(poll_s)
        poll_s = min(2 * poll_s, POLL_S)
