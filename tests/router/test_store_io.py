"""X-Fal-Store-IO: 0: what a client does not want kept leaves when it has been delivered."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from falctl.clock import wall_clock
from falctl.core.retries import Outcome
from falctl.core.types import RequestId
from falctl.router.jobs.records import Answer, Ending, LogLine, NewJob, StoreLimits
from falctl.router.jobs.store import JobStore
from tests.router.client import ask
from tests.router.fake_host import PATIENCE_S
from tests.router.harness import Setup
from tests.router.queue_calls import becomes, result, submit
from tests.router.receiver import Receiver, saying
from tests.router.test_webhooks import none_pending
from tests.wait import until

NOT_KEPT = {"X-Fal-Store-IO": "0"}


def leaves_at(setup: Setup, request: str) -> float | None:
    connection = sqlite3.connect(setup.home.jobs / "jobs.db")
    try:
        at: float | None = connection.execute(
            "SELECT leaves_at FROM jobs WHERE id = ?", (request,)
        ).fetchone()[0]
        return at
    finally:
        connection.close()


def settle(setup: Setup) -> None:
    """Return when what has been asked to be written so far is: writes become durable in their order."""
    becomes(setup, submit(setup)["request_id"], "COMPLETED")


def soon(at: float | None) -> bool:
    return at is not None and at <= wall_clock().timestamp() + 60.0


def test_a_result_that_was_fetched_leaves_soon(setup: Setup) -> None:
    request = submit(setup, headers=NOT_KEPT)["request_id"]
    becomes(setup, request, "COMPLETED")
    assert ask(setup, "HEAD", f"/queue/owner/app/requests/{request}").status == 200
    settle(setup)
    assert leaves_at(setup, request) is None, "nobody has had it"
    assert result(setup, request).body == b"ok"
    first = until(lambda: leaves_at(setup, request), within_s=PATIENCE_S, what="it is to leave")
    assert soon(first)
    assert result(setup, request).body == b"ok", "whose connection broke asks again"
    settle(setup)
    assert leaves_at(setup, request) == first, "and that does not keep it longer"


@pytest.mark.parametrize("headers", [{}, {"X-Fal-Store-IO": "1"}])
def test_other_results_stay(setup: Setup, headers: dict[str, str]) -> None:
    request = submit(setup, headers=headers)["request_id"]
    assert result(setup, request).body == b"ok"
    settle(setup)
    assert leaves_at(setup, request) is None


def test_a_result_whose_webhook_was_delivered_leaves_soon(setup: Setup) -> None:
    with Receiver() as receiver:
        request = submit(setup, f"?fal_webhook={receiver.url}", headers=NOT_KEPT)["request_id"]
        receiver.wait()
        none_pending(setup)
    assert soon(leaves_at(setup, request))


def test_a_result_that_was_fetched_stays_for_its_webhook(setup: Setup) -> None:
    with Receiver(saying(500)) as receiver:
        request = submit(setup, f"?fal_webhook={receiver.url}", headers=NOT_KEPT)["request_id"]
        receiver.wait()
        assert result(setup, request).body == b"ok"
        until(lambda: soon(leaves_at(setup, request)), within_s=PATIENCE_S, what="it is to leave")
    connection = sqlite3.connect(setup.home.jobs / "jobs.db")
    try:
        assert connection.execute("SELECT count(*) FROM webhooks").fetchone() == (1,)
        with connection:
            connection.execute("DELETE FROM webhooks")
    finally:
        connection.close()


def test_what_is_to_leave_leaves_with_all_that_belongs_to_it(tmp_path: Path) -> None:
    brief, kept, runs = RequestId("brief"), RequestId("kept"), RequestId("runs")
    well = Ending(Outcome(200), 0.1, wall_clock().timestamp())

    async def run() -> None:
        store = JobStore(tmp_path, StoreLimits(keep_s=3600.0, max_bytes=1 << 30))
        for request in (brief, kept, runs):
            await store.submit(NewJob(request, b"{}", b"x" * 100_000, brief=request != kept))
        for request in (brief, kept):
            await store.add_logs(request, [LogLine(1.0, "INFO", "line")])
            await store.end(request, well, Answer((), b"y" * 100_000))
            assert await store.body(request) is None
        for request in (brief, kept, runs):
            await store.let_leave(request, after_s=-1.0)
        assert await store.sweep() == 1
        assert await store.find(brief) is None
        assert await store.answer(brief) is None
        assert await store.logs(brief) == []
        assert await store.answer(kept) is not None
        assert await store.body(runs) is not None
        assert len(list((tmp_path / "bodies").iterdir())) == 2
        store.close()

    asyncio.run(run())
