"""Makes a record of a job durable, as its machine asks for it."""

from __future__ import annotations

import asyncio
import logging

from falctl.clock import wall_s
from falctl.core import jobs
from falctl.core.types import RequestId
from falctl.errors import StorageFullError
from falctl.router.fal.webhooks.target import receiver
from falctl.router.jobs.envelope import Envelope
from falctl.router.jobs.live import Live
from falctl.router.jobs.records import Ending, NewJob
from falctl.router.jobs.store import JobStore
from falctl.tasks import spawn

log = logging.getLogger(__name__)


def new_job(request: RequestId, packed: bytes, body: bytes, *, envelope: Envelope) -> NewJob:
    """Return what the store is to keep of a submission; *packed* is *envelope* as it is written."""
    webhook = envelope.webhook
    return NewJob(request, packed, body, None if webhook is None else receiver(webhook), envelope.brief)


async def save(store: JobStore, live: Live, action: jobs.Save) -> bool:
    """Write the record of *action*, as *live* is now, after its pause; return whether it is durable."""
    job, attempts, failures = live.job, live.job.attempts, dict(live.job.failures)
    if action.after_s:
        await asyncio.sleep(action.after_s)
    try:
        if action.record == "cancel":
            await store.cancel(job.request)
        elif action.record == "end":
            await _save_end(store, live)
        else:
            if action.record == "attempt":
                live.body = spawn(store.body(job.request), name=f"body-{job.request}")
            await store.begin_attempt(
                job.request, attempts=attempts, failures=failures, dispatched=action.record == "attempt"
            )
    except StorageFullError as error:
        log.debug("job.not_saved request=%s record=%s: %s", job.request, action.record, error.detail)
        return False
    return True


async def _save_end(store: JobStore, live: Live) -> None:
    job, delivered = live.job, live.delivered
    assert job.outcome is not None
    answered = delivered is not None and delivered.outcome == job.outcome
    ending = Ending(job.outcome, None if delivered is None else delivered.took_s, wall_s())
    await store.end(job.request, ending, delivered.answer if delivered and answered else None)
