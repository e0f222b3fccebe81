"""
The health check of a fal.App: its own endpoint, asked as fal's platform asks it.

Every 15 s, or only after an answer that asks for it (`call_regularly=False`). A runner is sick after as many failures
in a row as it says, but never within its start period. What checks holds no slot, and runs beside the requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import Any, Final

from starlette.types import ASGIApp

from falctl.clock import monotonic_s
from falctl.host.inside import post
from falctl.host.prints.aside import aside
from falctl.tasks import spawn

log = logging.getLogger(__name__)

EVERY_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """How to check, with fal's defaults."""

    path: str
    every_s: float | None = EVERY_S
    """None: only when an answer asks for it."""
    start_period_s: float = 30.0
    timeout_s: float = 5.0
    failures_max: int = 3


def read_check(config: Any) -> HealthCheck | None:
    """Return what the SDK's `ApplicationHealthCheckConfig` says; None for an app without a check."""
    if config is None:
        return None
    if config.call_regularly is False:
        return HealthCheck(config.path, None, 0.0, _or(config.timeout_seconds, 5.0), 1)
    return HealthCheck(
        path=config.path,
        start_period_s=_or(config.start_period_seconds, 30.0),
        timeout_s=_or(config.timeout_seconds, 5.0),
        failures_max=int(_or(config.failure_threshold, 3)),
    )


class HealthWatch:
    """Watches one app. Owned by the event loop."""

    def __init__(self, check: HealthCheck, web: ASGIApp) -> None:
        self.asked = asyncio.Event()
        """Set by an answer that wants a check now."""
        self._check = check
        self._web = web
        self._running: asyncio.Task[int | str] | None = None

    async def sick(self) -> str:
        """Return when the app is sick, and why."""
        began_at, failures = monotonic_s(), 0
        while True:
            await self._next()
            fault = await self._fault()
            early = monotonic_s() - began_at < self._check.start_period_s
            failures = failures + 1 if fault and not early else 0
            if fault:
                log.warning("health.failed %s failures=%d early=%s", fault, failures, early)
            if failures >= self._check.failures_max:
                return f"health check {self._check.path}: {fault}"

    async def _next(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.asked.wait(), self._check.every_s)
        self.asked.clear()

    async def _fault(self) -> str:
        """Return what is wrong; empty: nothing. A check that hangs goes on, and the next waits for the same one."""
        if self._running is None:
            self._running = spawn(self._ask(), name="health")
        await asyncio.wait({self._running}, timeout=self._check.timeout_s)
        if not self._running.done():
            return f"no answer within {self._check.timeout_s:g} s"
        task, self._running = self._running, None
        outcome = task.result()
        if isinstance(outcome, str):
            return outcome
        return "" if outcome in range(200, 300) else f"status {outcome}"

    async def _ask(self) -> int | str:
        with aside():
            return await post(self._web, self._check.path)


def _or(value: float | None, default: float) -> float:
    return default if value is None else float(value)
