"""What others hear of queued jobs: every change of every job, once, and an end when it is on the disk."""

from __future__ import annotations

import asyncio
from pathlib import Path

from falctl.config import QueueConfig, RoutingConfig
from falctl.core.events import Dispatch, RunnerUp
from falctl.core.jobs import JobState
from falctl.core.retries import Outcome
from falctl.core.types import Epoch, RequestId, RunnerId
from falctl.router.dispatch.apps import Apps, LocalApp
from falctl.router.dispatch.driver import Driver
from falctl.router.jobs.courier import Courier, Delivered
from falctl.router.jobs.envelope import Envelope
from falctl.router.jobs.keeper import Keeper
from falctl.router.jobs.live import Live
from falctl.router.jobs.records import StoreLimits
from falctl.router.jobs.store import JobStore
from falctl.router.own.ledger import Ledger

JOB = RequestId("q1")
ENVELOPE = Envelope("me/app", "POST", b"/", b"", [], None, "me")


class OneRunner(Courier):
    """Brings every job to its end at once, where a fleet would."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    async def deliver(self, dispatch: Dispatch, envelope: Envelope, body: bytes) -> Delivered | None:
        self._driver.release(dispatch)
        return Delivered(Outcome(200), None, 0.1)


def test_every_change_of_a_job_is_heard_and_its_end_is_on_the_disk_by_then(tmp_path: Path) -> None:
    async def run() -> None:
        driver = Driver(routing=RoutingConfig(), queue=QueueConfig(), ledger=Ledger(), cwd=tmp_path)
        store = JobStore(tmp_path, StoreLimits(keep_s=3600.0, max_bytes=1 << 20))
        keeper = Keeper(store, Apps([LocalApp("", frozenset({RunnerId(0)}), driver)]), OneRunner(driver))
        heard, over = list[tuple[RequestId, JobState]](), asyncio.Event()

        def observe(live: Live, state: JobState) -> None:
            heard.append((live.job.request, state))
            if state == "completed":
                assert keeper.find(live.job.request) is None
                over.set()

        keeper.observers.append(observe)
        await keeper.submit(JOB, ENVELOPE, b"{}")
        driver.handle(RunnerUp(RunnerId(0), Epoch(1), 1, (), None))
        async with asyncio.timeout(60):
            await over.wait()
        saved = await store.find(JOB)
        assert saved is not None
        assert saved.ending is not None
        states: list[JobState] = ["saving", "waiting", "starting", "running", "ending", "completed"]
        assert heard == [(JOB, state) for state in states]
        await keeper.idle()
        keeper.close()

    asyncio.run(run())
