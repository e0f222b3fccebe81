"""Of the jobs that wait the scheduler sees a window, and hears about how many are behind it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from falctl.config import QueueConfig, RoutingConfig
from falctl.core import jobs
from falctl.core.backlog import WINDOW_MAX
from falctl.core.events import RunnerDown
from falctl.core.types import Hint, RequestId, RunnerId, Wanted
from falctl.router.dispatch.driver import Driver
from falctl.router.jobs.envelope import Envelope, pack
from falctl.router.jobs.live import Live, entry_of
from falctl.router.jobs.waiters import Waiters
from falctl.router.own.ledger import Ledger

HINT = Hint("m")


def waiting(number: int) -> Live:
    envelope = Envelope("me/app", "POST", b"/", b"", [], Wanted(HINT, "header"), "me")
    job = jobs.Job(RequestId(f"q{number}"))
    for event in (jobs.Submitted(), jobs.Saved("job")):
        job.handle(event)
    return Live(job, pack(envelope), "app", entry_of(job.request, number, envelope))


def test_the_scheduler_hears_how_many_wait_behind_its_window(tmp_path: Path) -> None:
    async def run() -> None:
        driver = Driver(routing=RoutingConfig(), queue=QueueConfig(), ledger=Ledger(), cwd=tmp_path)
        waiters = Waiters(driver, lambda _, __: None)
        queue = driver.scheduler.queue
        driver.handle(RunnerDown(RunnerId(0), returns=True))
        for number in range(WINDOW_MAX + 1000):
            waiters.enter(waiting(number))
        assert queue.count(HINT) == WINDOW_MAX
        assert WINDOW_MAX + 700 < queue.count_ahead(HINT) <= WINDOW_MAX + 1000
        for number in range(WINDOW_MAX + 999):
            waiters.leave(RequestId(f"q{number}"))
        await asyncio.sleep(0)
        assert queue.count(HINT) == queue.count_ahead(HINT) == 1

    asyncio.run(run())
