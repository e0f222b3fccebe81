"""When a runner makes way for a fresh process of its own accord: idle for as long as its app allows, or sick."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from falctl.clock import monotonic_s
from falctl.host.limits import Limits
from falctl.host.start import Served
from falctl.host.ticket import Slots
from falctl.tasks import spawn

log = logging.getLogger(__name__)

_LOOK_S: Final = 0.5


async def retired(served: Served) -> None:
    """Return when *served* is to end, with no new request let in and, unless it is sick, none running."""
    reasons = {spawn(_idle(served.slots, served.limits), name="keep_alive")}
    if served.health is not None:
        reasons.add(spawn(served.health.sick(), name="health.watch"))
    done, _ = await asyncio.wait(reasons, return_when=asyncio.FIRST_COMPLETED)
    served.slots.drain()
    served.report.draining()
    log.warning("runner.retires %s", done.pop().result())


async def _idle(slots: Slots, limits: Limits) -> str:
    """Return once it has served, and then nothing for as long as it may be kept; a fresh process has nothing to free."""
    if (keep_s := limits.keep_alive_s) is None:
        await asyncio.get_running_loop().create_future()
    assert keep_s is not None, "nobody resolves that future"
    while True:
        idle_s = monotonic_s() - slots.idle_at
        if not slots.held and slots.served and idle_s >= keep_s:
            return f"idle for {idle_s:.0f} s (keep_alive)"
        await asyncio.sleep(max(keep_s - idle_s, _LOOK_S))
