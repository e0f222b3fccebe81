"""
Leads every queued job through its life: performs what `falctl.core.jobs` decides, and tells it what happened.

Those who wait stand in `falctl.core.backlog`; whoever that shows arrives at the scheduler like any other request, and
leaves it again when it is hidden. Between a decision of the scheduler and sending stands one write to the disk.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias, assert_never

from falctl.clock import monotonic_s, wall_clock
from falctl.core import jobs
from falctl.core.backlog import Backlog, Change, Entry
from falctl.core.events import Arrived, Dispatch, Refuse, RefuseCode
from falctl.core.retries import Outcome
from falctl.core.types import RequestId
from falctl.errors import StorageFullError
from falctl.router.driver import Decision, Driver
from falctl.router.jobs.courier import Courier, Delivered
from falctl.router.jobs.envelope import Envelope, pack, unpack
from falctl.router.jobs.records import Ending, NewJob, SavedJob
from falctl.router.jobs.store import JobStore
from falctl.tasks import spawn

log = logging.getLogger(__name__)

LATE_EVERY_S: Final = 0.5
"""How late a start deadline may fire for a job that the scheduler does not see."""
SWEEP_EVERY_S: Final = 30.0

_FOR_GOOD: Final[dict[RefuseCode, Outcome]] = {
    "start_timeout": Outcome(504, "request_timeout"),
    "model_too_large": Outcome(507, "model_too_large"),
}
"""What ends a job; with anything else it waits and asks again."""


@dataclass(slots=True)
class Live:
    """
    A job that has not ended, with what its owner must remember.

    Tens of thousands may wait, so it consists of few objects: the garbage collector walks them all, in mid-request.
    """

    job: jobs.Job
    packed: bytes
    """Its envelope as it stands on the disk."""
    entry: Entry | None = None
    """None: its number is not known, because it is not durable yet."""
    decision: Decision | None = None
    dispatch: Dispatch | None = None
    """The slot that it has; None: none."""
    bounced: Dispatch | None = None
    """The slot that it was not let into, until the scheduler has been told."""
    delivered: Delivered | None = None
    cancelled: asyncio.Event | None = None
    """Set when its cancellation is durable, or it has ended; None: nobody waits for that."""

    @property
    def envelope(self) -> Envelope:
        """Return all of the request but its body, made anew."""
        return unpack(self.packed)


_Step: TypeAlias = jobs.Wait | jobs.Withdraw | jobs.Send | jobs.GiveBack | jobs.StopAttempt


class Keeper:
    """Owner of all jobs that have not ended. One event loop, no locks."""

    def __init__(self, store: JobStore, driver: Driver, courier: Courier) -> None:
        self.store = store
        self.backlog = Backlog()
        self._driver = driver
        self._courier = courier
        self._jobs: dict[RequestId, Live] = {}
        self._closed = False
        self._working = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def recover(self) -> int:
        """Take up what the disk holds; return how many jobs that is. Blocks."""
        for saved in self.store.recover():
            self._take_up(saved)
        return len(self._jobs)

    def find(self, request: RequestId) -> Live | None:
        """Return the job of that id, if it has not ended."""
        return self._jobs.get(request)

    async def submit(self, request: RequestId, envelope: Envelope, body: bytes) -> Live:
        """
        Return the job that this request is from now on, whatever dies.

        Raises:
            StorageFullError: it is none.
        """
        # Whoever waits may go: what is durable by then must not be forgotten until the next start.
        work = spawn(self._submit(request, envelope, body), name=f"submit-{request}")
        live: Live | StorageFullError = await asyncio.shield(work)
        if isinstance(live, StorageFullError):
            raise live
        return live

    async def _submit(self, request: RequestId, envelope: Envelope, body: bytes) -> Live | StorageFullError:
        live = Live(jobs.Job(request, envelope.rules), pack(envelope))
        self._tell(live, jobs.Submitted())
        try:
            number = await self.store.submit(NewJob(request, live.packed, body))
        except StorageFullError as error:
            self._tell(live, jobs.NotSaved("job"))
            return error
        self._jobs[request] = live
        live.entry = _entry(request, number, envelope)
        self._tell(live, jobs.Saved("job"))
        return live

    async def cancel(self, live: Live) -> bool:
        """Return whether *live* is to end, once that is durable; False: its end is known already."""
        if live.job.outcome is not None and not live.job.cancel_asked:
            return False
        cancelled = live.cancelled = live.cancelled or asyncio.Event()
        self._tell(live, jobs.CancelAsked())
        await cancelled.wait()
        return True

    async def keep_for_ever(self) -> None:
        """Give up what starts too late out of the scheduler's sight, and delete what has been kept long enough."""
        swept_at = monotonic_s()
        while True:
            await asyncio.sleep(LATE_EVERY_S)
            for request in self.backlog.late(monotonic_s()):
                live = self._jobs[request]
                if live.decision is None:
                    self._change(self.backlog.remove(request))
                    self._tell(live, jobs.Refused(_FOR_GOOD["start_timeout"]))
            if monotonic_s() - swept_at >= SWEEP_EVERY_S:
                swept_at = monotonic_s()
                await self._sweep()

    async def idle(self) -> None:
        """Wait until no attempt is under way, and nothing is being written."""
        await self._idle.wait()

    def close(self) -> None:
        """Begin nothing more, and close the store. Blocks while it commits. What has not ended is taken up next time."""
        self._closed = True
        self.store.close()

    # --- the machine and its actions ---------------------------------------------------------------

    def _take_up(self, saved: SavedJob) -> None:
        envelope = unpack(saved.envelope)
        job = jobs.Job(
            saved.request,
            envelope.rules,
            saved.attempts,
            dict(saved.failures),
            cancel_asked=saved.cancel_asked,
        )
        live = Live(job, saved.envelope, _entry(saved.request, saved.number, envelope))
        self._jobs[saved.request] = live
        self._tell(live, jobs.Recovered(saved.dispatched))

    def _tell(self, live: Live, event: jobs.Event) -> None:
        if self._closed:
            return
        for action in live.job.handle(event):
            self._perform(live, action)

    def _perform(self, live: Live, action: jobs.Action) -> None:
        match action:
            case jobs.Save("job"):
                pass  # `_submit` does
            case jobs.Save():
                self._work(self._save(live, action), name=f"save-{action.record}-{live.job.request}")
            case jobs.Acknowledge(record):
                if record == "cancel" and live.cancelled is not None:
                    live.cancelled.set()
            case jobs.Finish():
                del self._jobs[live.job.request]
                if live.cancelled is not None:
                    live.cancelled.set()
                log.debug("job.ended request=%s state=%s", live.job.request, live.job.state)
            case _:
                self._move(live, action)

    def _move(self, live: Live, action: _Step) -> None:
        match action:
            case jobs.Wait(after_s):
                if after_s:
                    asyncio.get_running_loop().call_later(after_s, self._enter, live)
                else:
                    self._enter(live)
            case jobs.Withdraw():
                self._change(self.backlog.remove(live.job.request))
            case jobs.Send():
                self._work(self._attempt(live), name=f"attempt-{live.job.request}")
            case jobs.GiveBack():
                assert live.dispatch is not None
                self._driver.release(live.dispatch)
                live.dispatch = None
            case jobs.StopAttempt():
                self._stop(live)
            case _:
                assert_never(action)

    def _work(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        """Let *work* run, and have `idle` wait for it."""
        self._working += 1
        self._idle.clear()
        spawn(work, name=name).add_done_callback(self._worked)

    def _worked(self, _: object) -> None:
        self._working -= 1
        if not self._working:
            self._idle.set()

    async def _save(self, live: Live, save: jobs.Save) -> None:
        job, attempts, failures = live.job, live.job.attempts, dict(live.job.failures)
        if save.after_s:
            await asyncio.sleep(save.after_s)
        try:
            if save.record == "cancel":
                await self.store.cancel(job.request)
            elif save.record == "end":
                await self._save_end(live)
            else:
                await self.store.begin_attempt(
                    job.request, attempts=attempts, failures=failures, dispatched=save.record == "attempt"
                )
        except StorageFullError as error:
            log.warning("job.not_saved request=%s record=%s: %s", job.request, save.record, error.detail)
            self._tell(live, jobs.NotSaved(save.record))
        else:
            self._tell(live, jobs.Saved(save.record))

    async def _save_end(self, live: Live) -> None:
        job, delivered = live.job, live.delivered
        assert job.outcome is not None
        answered = delivered is not None and delivered.outcome == job.outcome
        ending = Ending(job.outcome, None if delivered is None else delivered.took_s, _wall_s())
        await self.store.end(job.request, ending, delivered.answer if delivered and answered else None)

    async def _sweep(self) -> None:
        try:
            await self.store.sweep()
        except StorageFullError as error:
            log.warning("jobs.not_deleted: %s", error.detail)

    # --- waiting -----------------------------------------------------------------------------------

    def _enter(self, live: Live) -> None:
        """Let it wait. After a pause, it may have been cancelled in between."""
        if live.job.state == "waiting" and live.entry is not None and live.job.request not in self.backlog:
            self._change(self.backlog.add(live.entry))

    def _change(self, change: Change) -> None:
        for entry in change.hide:
            live = self._jobs[entry.request]
            if live.decision is not None and not live.decision.done():
                self._driver.cancel(entry.request)
        for entry in change.show:
            self._show(self._jobs[entry.request])

    def _show(self, live: Live) -> None:
        if live.decision is not None or self._closed:
            return  # it was decided just before it was hidden
        arrived, bounced = _arrived(live), live.bounced
        live.bounced = None
        decision = self._driver.submit(arrived) if bounced is None else self._driver.bounce(bounced, arrived)
        live.decision = decision
        decision.add_done_callback(partial(self._decided, live))

    def _decided(self, live: Live, decision: Decision) -> None:
        if decision.cancelled():
            return
        live.decision, action = None, decision.result()
        match action:
            case Dispatch():
                live.dispatch = action
                self._change(self.backlog.remove(live.job.request))
                self._tell(live, jobs.Granted())
            case Refuse(code=code):
                if code != "draining":  # else it waits for the next start
                    self._change(self.backlog.remove(live.job.request))
                    self._tell(live, jobs.Refused(_FOR_GOOD.get(code)))
            case None:
                if self.backlog.is_shown(live.job.request):
                    self._show(live)  # it was hidden, and shown again before this

    # --- attempts ----------------------------------------------------------------------------------

    async def _attempt(self, live: Live) -> None:
        dispatch = live.dispatch
        assert dispatch is not None
        try:
            body = await self.store.body(live.job.request)
            assert body is not None, "the request of a job is kept until it has ended"
            delivered = await self._courier.deliver(dispatch, live.envelope, body)
        except Exception:
            log.exception("job.attempt_failed request=%s", live.job.request)
            self._driver.release(dispatch)
            delivered = Delivered(Outcome(500, "internal_error"), None, 0.0)
        live.dispatch = None
        if delivered is not None:
            live.delivered = delivered
            self._tell(live, jobs.AttemptEnded(delivered.outcome))
            return
        live.bounced = dispatch
        self._tell(live, jobs.Bounced())
        if live.bounced is not None:  # it does not arrive again at once, which would have told the scheduler
            live.bounced = None
            self._driver.bounce(dispatch, _arrived(live))
            self._driver.cancel(dispatch.request)

    def _stop(self, live: Live) -> None:
        assert live.dispatch is not None
        if (link := self._courier.cancel(live.dispatch)) is not None:
            spawn(link.cancel(live.job.request), name=f"cancel-{live.job.request}")


def _entry(request: RequestId, number: int, envelope: Envelope) -> Entry:
    start_by = envelope.start_by
    hint = None if envelope.wanted is None else envelope.wanted.hint
    at = None if start_by is None else monotonic_s() + start_by - _wall_s()
    return Entry(request, number, hint, envelope.priority, at)


def _arrived(live: Live) -> Arrived:
    envelope, entry = live.envelope, live.entry
    assert entry is not None
    return Arrived(
        entry.request,
        envelope.wanted,
        envelope.client,
        priority=entry.priority,
        start_by=entry.start_by,
        bounded=False,
    )


def _wall_s() -> float:
    return wall_clock().timestamp()
