"""What an attempt does: it takes what was submitted to the runner that has a slot for it, and hears what becomes of it."""

from __future__ import annotations

import logging
from typing import Final

from falctl.core import jobs
from falctl.core.events import Dispatch
from falctl.core.retries import Outcome
from falctl.router.dispatch.apps import LocalApp
from falctl.router.jobs.courier import Courier, Delivered
from falctl.router.jobs.live import Live, Tell
from falctl.router.jobs.waiters import Waiters

log = logging.getLogger(__name__)

_FAILED: Final = Outcome(500, "internal_error")


class Attempts:
    """Makes those of one app. Of one job there is never more than one under way."""

    def __init__(self, app: LocalApp, *, courier: Courier, waiters: Waiters, tell: Tell) -> None:
        self._app = app
        self._driver = app.driver
        self._courier = courier
        self._waiters = waiters
        self._tell = tell

    async def make(self, live: Live) -> None:
        """Send *live* to the runner whose slot it has; return when that is over and its machine knows."""
        dispatch = live.dispatch
        assert dispatch is not None
        try:
            delivered = await self._deliver(live, dispatch)
        except Exception:
            log.exception("job.attempt_failed request=%s", live.job.request)
            self._driver.release(dispatch)
            delivered = Delivered(_FAILED, None, 0.0)
        live.dispatch = None
        if delivered is not None:
            live.delivered = delivered
            self._tell(live, jobs.AttemptEnded(delivered.outcome, self._app.retries))
        else:
            self._waiters.undo(live, dispatch)
            self._tell(live, jobs.Bounced())
            self._waiters.settle(live)

    async def _deliver(self, live: Live, dispatch: Dispatch) -> Delivered | None:
        assert live.body is not None, "it is read while the attempt is saved"
        body, live.body = await live.body, None
        if live.job.cancel_asked:  # while its body was read, when no runner could be asked to stop it
            self._driver.release(dispatch)
            return Delivered(jobs.CANCELLED, None, 0.0)
        if body is not None:
            return await self._courier.deliver(dispatch, live.envelope, body)
        log.error("job.lost request=%s: the file of what was submitted has been deleted", live.job.request)
        self._driver.release(dispatch)
        return Delivered(_FAILED, None, 0.0)

    def give_back(self, live: Live) -> None:
        """Release the slot of *live*: nothing is sent."""
        assert live.dispatch is not None
        self._driver.release(live.dispatch)
        live.dispatch = live.body = None
