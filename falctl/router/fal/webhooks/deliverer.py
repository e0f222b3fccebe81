"""
Calls those who asked to hear of the end of their jobs, until they have heard.

What is due is asked of the database whenever a job ends, a call is over, or the next one's time has come; a crash in
mid-call is a call that is made again. Nobody's answer is read beyond its head, and redirects are not followed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from typing import Final

import aiohttp

from falctl.clock import wall_s
from falctl.core import webhooks
from falctl.core.jobs import ENDED, JobState
from falctl.errors import StorageFullError
from falctl.router.fal.webhooks.letter import letter
from falctl.router.fal.webhooks.lookup import own_threads_resolver
from falctl.router.fal.webhooks.outbox import Besides, Due, Outbox
from falctl.router.fal.webhooks.signing import Signer
from falctl.router.jobs.live import Live
from falctl.router.jobs.room import BRIEF_S
from falctl.router.jobs.store import JobStore
from falctl.router.own.ledger import Ledger
from falctl.tasks import spawn
from falctl.version import __version__

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 120.0
"""The wall clock, by which the next try is written down, may jump."""
_AGAIN_S: Final = 1.0
_HEADERS: Final = {"Content-Type": "application/json", "User-Agent": f"falctl/{__version__}"}


class Deliverer:
    """Owner of the calls under way. One event loop."""

    def __init__(self, store: JobStore, signer: Signer, ledger: Ledger) -> None:
        self._ledger = ledger
        self._outbox = Outbox(store)
        self._signer = signer
        self._lanes = webhooks.Lanes()
        self._calls = set[asyncio.Task[None]]()
        self._wake = asyncio.Event()
        self._counted = False
        """The ledger knows of those that a former router has left."""
        self._rests = asyncio.Event()
        """Nobody is being called, and nothing is due."""

    def hear(self, live: Live, state: JobState) -> None:
        """Take note of a job's new state; an `Observe` of the keeper."""
        if state in ENDED and live.envelope.webhook is not None:
            self._rouse()

    async def deliver_for_ever(self) -> None:
        """Call whoever is to be called, now and later."""
        connector = aiohttp.TCPConnector(limit=0, force_close=True, resolver=own_threads_resolver())
        async with aiohttp.ClientSession(connector=connector, headers=_HEADERS) as session:
            try:
                while True:
                    self._wake.clear()
                    pause_s = await self._begin(session)
                    if not (self._calls or self._wake.is_set()):
                        self._rests.set()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(pause_s):
                            await self._wake.wait()
            finally:
                for call in self._calls:
                    call.cancel()
                await asyncio.gather(*self._calls, return_exceptions=True)

    async def settle(self, *, within_s: float) -> None:
        """Return when nobody is being called and nothing is due, or after *within_s*: the router is about to end."""
        self._rouse()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._rests.wait()

    def _rouse(self) -> None:
        self._rests.clear()
        self._wake.set()

    async def _begin(self, session: aiohttp.ClientSession) -> float:
        """Begin the calls that are due and have room; return how long to rest then."""
        try:
            if not self._counted:
                self._ledger.fail_webhooks(await self._outbox.failing())
                self._counted = True
            while free := self._lanes.free:
                due = await self._outbox.due(wall_s(), self._besides(), limit=free)
                if not [self._call(session, one) for one in due if self._lanes.take(one.job, one.receiver)]:
                    break
            next_at = await self._outbox.next_at(self._besides()) if self._lanes.free else None
        except sqlite3.Error as error:
            log.warning("webhooks.unreadable error=%s; they are looked for again", error)
            return _AGAIN_S
        # What has just come to be due was asked for as not due: it is not busy waiting.
        return LOOK_EVERY_S if next_at is None else min(max(next_at - wall_s(), 0.01), LOOK_EVERY_S)

    def _besides(self) -> Besides:
        return Besides(self._lanes.jobs, self._lanes.full)

    def _call(self, session: aiohttp.ClientSession, due: Due) -> asyncio.Task[None]:
        call = spawn(self._deliver(session, due), name=f"webhook-{due.request}")
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return call

    async def _deliver(self, session: aiohttp.ClientSession, due: Due) -> None:
        try:
            fault = await self._try(session, due)
            await self._note(due, fault)
        finally:
            self._lanes.release(due.job)
            self._rouse()

    async def _try(self, session: aiohttp.ClientSession, due: Due) -> str:
        """Call once; return why it failed, empty if it did not."""
        timeout_s = webhooks.timeout_s(due.tries)
        try:
            ended = await self._outbox.ended(due)
            if ended is None:
                return ""
            body = await asyncio.to_thread(letter, ended)
            headers = self._signer.headers(due.request, body, at=wall_s())
            async with (
                asyncio.timeout(timeout_s),
                session.post(due.url, data=body, headers=headers, allow_redirects=False) as response,
            ):
                return "" if webhooks.is_delivered(response.status) else f"it answered {response.status}"
        except TimeoutError:
            return f"it did not answer within {timeout_s:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return str(error) or type(error).__name__
        except Exception as error:
            log.exception("webhook.broken request=%s", due.request)
            return repr(error)

    async def _note(self, due: Due, fault: str) -> None:
        now = wall_s()
        pause_s = webhooks.pause_s(due.tries + 1, age_s=now - due.ended_at) if fault else None
        while True:
            try:
                if pause_s is None:
                    await self._outbox.done(due, leaves_at=now + BRIEF_S)
                else:
                    await self._outbox.again(due, at=now + pause_s)
                break
            except StorageFullError as error:
                log.warning("webhook.not_saved request=%s: %s", due.request, error.detail)
                await asyncio.sleep(_AGAIN_S)
        self._tell(due, fault, over=pause_s is None)

    def _tell(self, due: Due, fault: str, *, over: bool) -> None:
        self._ledger.fail_webhooks((due.tries == 0) - over)
        if not fault:
            log.debug("webhook.delivered request=%s tries=%d", due.request, due.tries + 1)
        elif over:
            who = (due.request, due.receiver, due.tries + 1)
            log.warning("webhook.given_up request=%s receiver=%s tries=%d: %s", *who, fault)
        elif due.tries == 0:
            what = "webhook.failed request=%s receiver=%s: %s; it is tried again for two hours"
            log.warning(what, due.request, due.receiver, fault)
