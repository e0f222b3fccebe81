"""
Leads every queued job through its life: tells `falctl.core.jobs` what happened, and has done what that decides.

Every app has a lane (`falctl.router.jobs.lanes`) of its own: who waits stands with `falctl.router.jobs.waiters`, what runs with `falctl.router.jobs.attempts`, and what is to be
durable goes through `falctl.router.jobs.saving`. Whoever wants to know of every change leaves an `Observe` here.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any, Final, TypeAlias, assert_never

from falctl.clock import monotonic_s
from falctl.core import jobs
from falctl.core.backlog import Backlog
from falctl.core.retries import SILENT
from falctl.core.types import RequestId
from falctl.errors import StorageFullError
from falctl.router.dispatch.apps import Apps, LocalApp
from falctl.router.jobs.attempts import Attempts
from falctl.router.jobs.courier import Courier
from falctl.router.jobs.envelope import Envelope, pack, unpack
from falctl.router.jobs.lanes import Lane, lane_name
from falctl.router.jobs.live import Live, entry_of
from falctl.router.jobs.records import SavedJob
from falctl.router.jobs.saving import new_job, save
from falctl.router.jobs.store import JobStore
from falctl.router.jobs.waiters import Waiters
from falctl.tasks import spawn

log = logging.getLogger(__name__)

CANCELLED_WITHIN_S: Final = 10.0
"""A disk that takes no cancellation for so long is full, and who waits for one should hear that."""
LATE_EVERY_S: Final = 0.5
"""How late a start deadline may fire for a job that the scheduler does not see, or a wiped database be noticed."""
AGAIN_EVERY_S: Final = 10.0
"""Pause before a database that could not be put back is tried again, where no write does."""
SWEEP_EVERY_S: Final = 30.0

Observe: TypeAlias = Callable[[Live, jobs.JobState], None]
"""
Hears of every job that has come into another state, when what it says is durable and its consequences are under way.

It is called on the event loop, in mid-decision: it must not block, raise, or call the keeper. A job whose state is one
of `jobs.ENDED` has ended on the disk, too, and the keeper does not know it any more.
"""

_Step: TypeAlias = jobs.Wait | jobs.Withdraw | jobs.Send | jobs.GiveBack | jobs.StopAttempt


class Keeper:
    """Owner of all jobs that have not ended. One event loop, no locks."""

    def __init__(self, store: JobStore, apps: Apps, courier: Courier) -> None:
        self.store = store
        self.observers: list[Observe] = []
        self._apps = apps
        self._courier = courier
        self._lanes = {app.alias: self._lane(app) for app in apps}
        self._jobs: dict[RequestId, Live] = {}
        self._closed = False
        self._working = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def aliases(self) -> Iterable[str]:
        """Return the apps for which jobs may wait, also those that are not configured any more."""
        return self._lanes.keys()

    def backlog(self, alias: str) -> Backlog:
        """Return who waits for the app of that alias, to be looked at."""
        return self._lanes[alias].waiters.backlog

    def position(self, request: RequestId) -> int | None:
        """Return how many jobs for its app go before *request*; None: it does not wait."""
        live = self._jobs.get(request)
        return None if live is None else self.backlog(live.lane).position(request)

    def recover(self) -> int:
        """Take up what the disk holds; return how many jobs that is. Blocks."""
        for saved in self.store.recover():
            self._take_up(saved)
        for alias, count in Counter(live.lane for live in self._jobs.values()).items():
            if self._lanes[alias].app is None:
                log.warning("jobs.wait app=%s count=%d: it is not configured", alias, count)
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
        live = Live(jobs.Job(request, envelope.rules), pack(envelope), lane_name(self._apps, envelope))
        self._tell(live, jobs.Submitted())
        try:
            number = await self.store.submit(new_job(request, live.packed, body, envelope=envelope))
        except StorageFullError as error:
            self._tell(live, jobs.NotSaved("job"))
            return error
        self._jobs[request] = live
        live.entry = entry_of(request, number, envelope)
        self._tell(live, jobs.Saved("job"))
        return live

    async def cancel(self, live: Live) -> bool:
        """
        Return whether *live* is to end, once that is durable; False: its end is known already.

        Raises:
            StorageFullError: it is not durable yet; it is tried again until it is, or the router ends.
        """
        if live.job.outcome is not None and not live.job.cancel_asked:
            return False
        cancelled = live.cancelled = live.cancelled or asyncio.Event()
        if live.job.request in self._lanes[live.lane].undecided:
            self._decide(live)
        self._tell(live, jobs.CancelAsked())
        try:
            async with asyncio.timeout(CANCELLED_WITHIN_S):
                await cancelled.wait()
        except TimeoutError:
            msg = "the cancellation could not be written to the disk yet, and is tried again; make room there"
            raise StorageFullError(msg) from None
        return True

    async def keep_for_ever(self) -> None:
        """Give up what starts too late out of the scheduler's sight, and delete what has been kept long enough."""
        swept_at = monotonic_s()
        while True:
            await asyncio.sleep(LATE_EVERY_S)
            for lane in self._lanes.values():
                lane.waiters.give_up_late()
            await self._look_after()
            if monotonic_s() - swept_at >= SWEEP_EVERY_S:
                swept_at = monotonic_s()
                await self._sweep()

    async def idle(self) -> None:
        """Wait until no attempt is under way, and nothing is being written."""
        await self._idle.wait()

    def close(self) -> None:
        """Begin nothing more, and close the store. Blocks while it commits. What has not ended is taken up next time."""
        self._closed = True
        for lane in self._lanes.values():
            lane.waiters.close()
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
        alias = lane_name(self._apps, envelope)
        if alias not in self._lanes:
            self._lanes[alias] = Lane(None, Waiters(None, self._tell), None)
        live = Live(job, saved.envelope, alias, entry_of(saved.request, saved.number, envelope))
        self._jobs[saved.request] = live
        if not saved.dispatched:
            self._tell(live, jobs.Recovered(dispatched=False))
            return
        lane = self._lanes[alias]
        lane.undecided[saved.request] = live
        if not lane.asks_first:
            self._decide(live)

    def _decide(self, live: Live) -> None:
        """Let *live*, which a former router left in mid-attempt, go on as its app says, or as is usual if that is not known."""
        lane = self._lanes[live.lane]
        del lane.undecided[live.job.request]
        self._tell(
            live, jobs.Recovered(dispatched=True, app=SILENT if lane.app is None else lane.app.retries)
        )

    def _lane(self, app: LocalApp) -> Lane:
        waiters = Waiters(app.driver, self._tell)
        attempts = Attempts(app, courier=self._courier, waiters=waiters, tell=self._tell)
        lane = Lane(app, waiters, attempts)
        app.when_known.append(partial(self._app_known, lane))
        return lane

    def _app_known(self, lane: Lane) -> None:
        for live in tuple(lane.undecided.values()):
            self._decide(live)

    def _tell(self, live: Live, event: jobs.Event) -> None:
        if self._closed:
            return
        before = live.job.state
        actions = live.job.handle(event)
        state = live.job.state
        for action in actions:
            self._perform(live, action)
        if state != before:
            for observe in self.observers:
                observe(live, state)

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
        waiters = self._lanes[live.lane].waiters
        match action:
            case jobs.Wait(after_s, freed):
                enter = partial(self._again if freed else waiters.enter, live)
                if after_s:
                    asyncio.get_running_loop().call_later(after_s, enter)
                else:
                    enter()
            case jobs.Withdraw():
                waiters.leave(live.job.request)
            case jobs.StopAttempt():
                self._courier.stop(live.job.request)
            case _:
                self._lead(live, action)

    def _again(self, live: Live) -> None:
        """Let *live* wait once more, but not before its last attempt has left its runner."""
        enter = self._lanes[live.lane].waiters.enter
        self._courier.stop(live.job.request, then=partial(enter, live))

    def _lead(self, live: Live, action: jobs.Send | jobs.GiveBack) -> None:
        attempts = self._lanes[live.lane].attempts
        assert attempts is not None, "without runners no job gets a slot"
        match action:
            case jobs.Send():
                self._work(attempts.make(live), name=f"attempt-{live.job.request}")
            case jobs.GiveBack():
                attempts.give_back(live)
            case _:
                assert_never(action)

    async def _save(self, live: Live, action: jobs.Save) -> None:
        saved = await save(self.store, live, action)
        self._tell(live, jobs.Saved(action.record) if saved else jobs.NotSaved(action.record))

    def _work(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        """Let *work* run, and have `idle` wait for it."""
        self._working += 1
        self._idle.clear()
        spawn(work, name=name).add_done_callback(self._worked)

    def _worked(self, _: object) -> None:
        self._working -= 1
        if not self._working:
            self._idle.set()

    async def _look_after(self) -> None:
        try:
            await self.store.look_after()
        except StorageFullError:  # the writer has said why
            await asyncio.sleep(AGAIN_EVERY_S)

    async def _sweep(self) -> None:
        try:
            await self.store.sweep()
        except StorageFullError as error:
            log.warning("jobs.not_deleted: %s", error.detail)
