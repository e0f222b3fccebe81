"""A cancellation that overtakes its own request: it comes to the host on another connection, or before anything was sent."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import pytest
from starlette.types import Send

from falctl.core import jobs
from falctl.core.events import Dispatch
from falctl.core.types import Epoch, RequestId, RunnerId
from falctl.router.dispatch.apps import UNNAMED, LocalApp
from falctl.router.dispatch.driver import Driver
from falctl.router.jobs.attempts import Attempts
from falctl.router.jobs.courier import Courier
from falctl.router.jobs.live import Live
from falctl.router.jobs.waiters import Waiters
from tests.router.client import Raw, ask, request_bytes
from tests.router.fake_host import PATIENCE_S, Seen, answer
from tests.router.harness import Setup, idle, serving
from tests.wait import until


@pytest.fixture
def setup() -> Iterator[Setup]:
    """A router with one host, which lets nothing in yet and ends what is cancelled."""

    async def until_cancelled(seen: Seen, send: Send) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while seen.request not in one.hosts[0].cancelled:  # noqa: ASYNC110 - the host notes it in a list
                await asyncio.sleep(0.01)
        await answer(send, b'{"detail": "cancelled"}', status=499)

    with serving(handler=until_cancelled) as one:
        one.hosts[0].door = threading.Event()
        yield one


def opens_when_asked(setup: Setup) -> None:
    """Let the request in once a cancellation has come before it, and wait until it has been cancelled all the same."""
    host = setup.hosts[0]
    assert host.door is not None
    until(lambda: host.cancels_asked, within_s=PATIENCE_S, what="a cancellation has come")
    assert host.cancelled == []
    host.door.set()
    until(lambda: host.cancelled, within_s=PATIENCE_S, what="it is cancelled")
    idle(setup)


def test_a_jobs_cancellation_that_comes_first_is_asked_for_again(setup: Setup) -> None:
    request = ask(setup, path="/queue/me/app", body=b"{}").json()["request_id"]
    base = f"/queue/me/app/requests/{request}"
    until(lambda: setup.hosts[0].at_door, within_s=PATIENCE_S, what="it stands at the door")
    assert ask(setup, "PUT", f"{base}/cancel").status == 202
    opens_when_asked(setup)
    until(
        lambda: ask(setup, "GET", f"{base}/status").json()["status"] == "COMPLETED",
        within_s=PATIENCE_S,
        what="it has ended",
    )


def test_a_client_that_leaves_before_its_request_arrives_has_it_cancelled(setup: Setup) -> None:
    with Raw(setup, request_bytes("/left")):
        until(lambda: setup.hosts[0].at_door, within_s=PATIENCE_S, what="it stands at the door")
    opens_when_asked(setup)


def test_a_request_that_has_ended_is_not_asked_for_again() -> None:
    with serving() as setup:
        request = ask(setup, path="/queue/me/app", body=b"{}").json()["request_id"]
        base = f"/queue/me/app/requests/{request}"
        until(
            lambda: ask(setup, "GET", f"{base}/status").json()["status"] == "COMPLETED",
            within_s=PATIENCE_S,
            what="it has ended",
        )
        assert ask(setup, "PUT", f"{base}/cancel").status == 400
        assert setup.hosts[0].cancels_asked == 0


@dataclass
class Parts:
    """In the place of an attempt's surroundings: a store that is slow, and what the others are told."""

    cancel: jobs.Job
    released: list[Dispatch]
    told: list[jobs.Event]
    sent: list[Any]

    async def body(self, _: RequestId) -> bytes:
        self.cancel.cancel_asked = True  # it comes while the body is read
        return b"{}"

    def release(self, dispatch: Dispatch) -> None:
        self.released.append(dispatch)

    async def deliver(self, *sent: Any) -> None:
        self.sent.append(sent)

    def tell(self, _: Live, event: jobs.Event) -> None:
        self.told.append(event)


def test_a_job_that_is_cancelled_while_its_body_is_read_is_not_sent() -> None:
    job = jobs.Job(RequestId("r"))
    dispatch = Dispatch(RequestId("r"), RunnerId(0), Epoch(1), waited_s=0.0, warm=False, reason="")
    parts = Parts(job, [], [], [])
    attempts = Attempts(
        LocalApp(UNNAMED, frozenset(), cast("Driver", parts)),
        courier=cast("Courier", parts),
        waiters=cast("Waiters", parts),
        tell=parts.tell,
    )

    async def make() -> None:
        body = asyncio.ensure_future(parts.body(RequestId("r")))
        await attempts.make(Live(job, b"", "", dispatch=dispatch, body=body))

    asyncio.run(make())
    assert parts.sent == []
    assert parts.released == [dispatch]
    assert parts.told == [jobs.AttemptEnded(jobs.CANCELLED)]
