"""
The jobs that wait for a runner: they stand in the backlog, and whoever that shows arrives at the scheduler.

Whoever is hidden leaves the scheduler again. Between its decision and sending stands one write to the disk, so
that what was decided for a job may come when that is over for other reasons; its machine knows.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from falctl.clock import monotonic_s
from falctl.core import jobs
from falctl.core.backlog import Backlog, Change
from falctl.core.events import Behind, Dispatch, Refuse, RefuseCode
from falctl.core.retries import Outcome
from falctl.core.types import RequestId
from falctl.router.dispatch.driver import Decision, Driver
from falctl.router.jobs.live import Live, Tell, arrived

START_TIMEOUT: Final = Outcome(504, "request_timeout")
"""It has not started within the time that its client gave it; a runner that ran out of time has a condition."""

_FOR_GOOD: Final[dict[RefuseCode, Outcome]] = {
    "start_timeout": START_TIMEOUT,
    "model_too_large": Outcome(507, "model_too_large"),
}
"""What ends a job; with anything else it waits and asks again."""


class Waiters:
    """Owner of who waits for the runners behind *driver*; None: there are none, and nobody is shown to anybody."""

    def __init__(self, driver: Driver | None, tell: Tell) -> None:
        self.backlog = Backlog()
        self._driver = driver
        self._tell = tell
        self._lives: dict[RequestId, Live] = {}
        self._closed = False

    def enter(self, live: Live) -> None:
        """Let it wait. After a pause, it may have been cancelled in between."""
        request = live.job.request
        if live.job.state == "waiting" and live.entry is not None and request not in self.backlog:
            self._lives[request] = live
            self._change(self.backlog.add(live.entry))

    def leave(self, request: RequestId) -> None:
        """Let it wait no more, if it does."""
        change = self.backlog.remove(request)
        live = self._lives.pop(request, None)
        if live is not None:
            self._forget(live)
        self._change(change)

    def give_up_late(self) -> None:
        """Refuse those that should have started by now, and are out of the scheduler's sight."""
        for request in self.backlog.late(monotonic_s()):
            live = self._lives[request]
            if live.decision is None:
                self.leave(request)
                self._tell(live, jobs.Refused(START_TIMEOUT))

    def undo(self, live: Live, dispatch: Dispatch) -> None:
        """
        Take note that the runner of *dispatch* did not let it in.

        The scheduler is told when it arrives again, which keeps its place there; at the latest by `settle`.
        """
        live.bounced = dispatch

    def settle(self, live: Live) -> None:
        """Tell the scheduler of a slot that was not entered, if nobody has."""
        if (dispatch := live.bounced) is not None:
            live.bounced = None
            assert self._driver is not None
            self._driver.bounce(dispatch, arrived(live))
            self._driver.cancel(dispatch.request)

    def close(self) -> None:
        """Show nobody any more."""
        self._closed = True

    def _change(self, change: Change) -> None:
        for entry in change.hide:
            live = self._lives.get(entry.request)
            if live is not None:
                self._forget(live)
        for entry in change.show:
            self._show(self._lives[entry.request])
        if self._driver is not None and not self._closed:
            for hint, count in change.behind:
                self._driver.handle(Behind(hint, count))

    def _forget(self, live: Live) -> None:
        """Have the scheduler forget it, unless that has decided."""
        if self._driver is not None and live.decision is not None and not live.decision.done():
            self._driver.cancel(live.job.request)

    def _show(self, live: Live) -> None:
        if live.decision is not None or self._closed or self._driver is None:
            return  # if it has a decision, that was made just before it was hidden
        bounced, live.bounced = live.bounced, None
        arrives = arrived(live)
        decision = self._driver.submit(arrives) if bounced is None else self._driver.bounce(bounced, arrives)
        live.decision = decision
        decision.add_done_callback(partial(self._decided, live))

    def _decided(self, live: Live, decision: Decision) -> None:
        if decision.cancelled():
            return
        live.decision, action = None, decision.result()
        match action:
            case Dispatch():
                live.dispatch = action
                self.leave(live.job.request)
                self._tell(live, jobs.Granted())
            case Refuse(code=code):
                if code != "draining":  # else it waits for the next start
                    self.leave(live.job.request)
                    self._tell(live, jobs.Refused(_FOR_GOOD.get(code)))
            case None:
                if self.backlog.is_shown(live.job.request):
                    self._show(live)  # it was hidden, and shown again before this
