"""A router that begins with ten thousand waiting jobs: all of them are there, in their order, and it serves."""

from __future__ import annotations

import asyncio
from typing import Final

from falctl.core.types import RequestId
from falctl.router.jobs.envelope import Envelope, pack
from falctl.router.jobs.records import NewJob, StoreLimits
from falctl.router.jobs.store import JobStore
from tests.router.client import ask
from tests.router.fake_host import PATIENCE_S, Gate, say_ok
from tests.router.harness import Setup
from tests.wait import until

JOBS: Final = 10_000
AT_ONCE: Final = 500


def fill(setup: Setup) -> None:
    packed = pack(Envelope("owner/app", "POST", b"/", b"", [], None, "somebody"))

    async def run() -> None:
        store = JobStore(setup.home.jobs, StoreLimits(keep_s=3600.0, max_bytes=1 << 30))
        for first in range(0, JOBS, AT_ONCE):
            new = (NewJob(RequestId(f"q{n}"), packed, b"{}") for n in range(first, first + AT_ONCE))
            await asyncio.gather(*map(store.submit, new))
        store.close()

    asyncio.run(run())


def position(setup: Setup, request: str) -> int | None:
    reply = ask(setup, "GET", f"/queue/owner/app/requests/{request}/status")
    found: int | None = reply.json().get("queue_position")
    return found


def test_ten_thousand_wait_on_after_a_restart() -> None:
    setup = Setup()
    try:
        fill(setup)
        host, gate = setup.add_host(0), Gate()
        host.handler = gate
        setup.start_router()
        until(lambda: host.seen, within_s=PATIENCE_S, what="the first runs")
        assert [position(setup, f"q{n}") for n in (0, 1, 700, JOBS - 1)] == [None, 0, 699, JOBS - 2]
        cancelled = ask(setup, "PUT", "/queue/owner/app/requests/q600/cancel")
        assert cancelled.status == 202
        last = ask(setup, path="/queue/owner/app", body=b"{}").json()
        assert last["queue_position"] == JOBS - 2
        host.handler = say_ok
        gate.opened.set()
        until(lambda: len(host.seen) > 800, within_s=60.0, what="hundreds have run")
        order = [int(seen.request.removeprefix("q")) for seen in host.seen[:800]]
        assert order == [n for n in range(801) if n != 600]
    finally:
        setup.close()
