"""Who watches a job is woken when it changes: an end between his first look and his listening included."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from falctl.core.jobs import Job
from falctl.core.types import RequestId
from falctl.router.edge.call import Call
from falctl.router.fal.queue_status import QueueStatus
from falctl.router.jobs.live import Live
from falctl.router.jobs.watch import Watchers

JOB = RequestId("q1")


def live(request: RequestId) -> Live:
    return Live(Job(request), b"{}", "app")


LIVE = live(JOB)


class Racing(QueueStatus):
    """Its job ends just after the first look at it."""

    def __init__(self, watchers: Watchers) -> None:
        self._watchers = self._ours = watchers
        self.looks = 0

    async def now(self, call: Call, request: RequestId, *, logs_from: int | None) -> dict[str, Any]:
        self.looks += 1
        if self.looks == 1:
            self._ours.hear(LIVE, "completed")
            return {"status": "IN_PROGRESS"}
        return {"status": "COMPLETED"}


class Sent:
    """The router's side of one client's connection."""

    def __init__(self) -> None:
        self.request = JOB
        self.scope = {"method": "GET"}
        self.connection = SimpleNamespace(gone=False, on_gone=None)
        self.parts: list[bytes] = []

    async def start(self, status: int, headers: Any) -> None:
        assert status == 200

    async def body(self, chunk: bytes, *, last: bool) -> None:
        self.parts.append(chunk)


def test_an_end_between_the_first_look_and_listening_is_told() -> None:
    async def run() -> None:
        watchers, sent = Watchers(lambda _: None), Sent()
        async with asyncio.timeout(60):
            await Racing(watchers).stream(cast("Call", sent), JOB, logs=False)
        assert [b"COMPLETED" in part for part in sent.parts] == [False, True, False]
        assert len(watchers) == 0

    asyncio.run(run())


def test_places_are_looked_at_only_while_somebody_watches_and_once_for_all() -> None:
    async def run() -> None:
        places, asked = {JOB: 3}, list[RequestId]()

        def position(request: RequestId) -> int:
            asked.append(request)
            return places[request]

        watchers = Watchers(position)
        watchers.hear(LIVE, "waiting")
        assert asked == []
        with watchers.watch(JOB) as first, watchers.watch(JOB) as second:
            asked.clear()
            other = live(RequestId("q0"))
            for _ in range(100):
                watchers.hear(other, "running")
            places[JOB] = 2
            assert await first.changed(within_s=60.0)
            assert await second.changed(within_s=60.0)
            assert asked == [JOB]
            watchers.hear(other, "ending")
            assert not await first.changed(within_s=0.6), "its place is the same"
            watchers.printed(JOB)
            assert await first.changed(within_s=60.0)
            watchers.close()
            assert first.over
        with watchers.watch(JOB) as late:
            assert late.over

    asyncio.run(run())
