"""
The longest that a request may execute in an app that says so (`request_timeout` of a fal.App).

Async code is cancelled. A sync endpoint cannot be: its client is answered, and the process ends, as fal ends it.
"""

from __future__ import annotations

import asyncio
import logging

from falctl.errors import EXIT_OVERDUE, DeadlineError
from falctl.host.answer import Answer
from falctl.host.ending import end_process
from falctl.host.failures import render
from falctl.host.ticket import Ticket
from falctl.tasks import spawn

log = logging.getLogger(__name__)


class Deadline:
    """Runs from its creation until `cancel`; *timeout_s* None is no deadline."""

    def __init__(self, ticket: Ticket, answer: Answer, timeout_s: float | None) -> None:
        self._ticket = ticket
        self._answer = answer
        self._timer: asyncio.TimerHandle | None = None
        if timeout_s is not None:
            self._timer = asyncio.get_running_loop().call_later(timeout_s, self._expire)

    def cancel(self) -> None:
        """Let the request take as long as it likes from now on."""
        if self._timer is not None:
            self._timer.cancel()

    def _expire(self) -> None:
        log.warning("request.overdue request=%s", self._ticket.request)
        if not self._ticket.expire() and not self._ticket.ending:
            spawn(self._answer_and_end(), name="request.overdue")

    async def _answer_and_end(self) -> None:
        if not self._answer.started:
            await self._answer.instead(render(overdue()))
        end_process(EXIT_OVERDUE)


def overdue() -> DeadlineError:
    """Return the error that the client of an overdue request gets."""
    return DeadlineError("The request took longer than the app's request_timeout")
