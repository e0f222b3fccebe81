"""Priorities and start deadlines, from the header that asks for them to the answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from starlette.types import Send

from tests.router.client import Raw, ask, request_bytes
from tests.router.fake_host import PATIENCE_S, Seen, answer, wait_on_loop
from tests.router.harness import Setup, serving
from tests.wait import until


@contextmanager
def busy_runner() -> Iterator[tuple[Setup, threading.Event, list[bytes]]]:
    """One runner whose only slot is taken until the event is set; what it serves from then on, in order."""
    release, served = threading.Event(), list[bytes]()

    async def handle(seen: Seen, send: Send) -> None:
        if seen.raw_path == b"/block":
            await wait_on_loop(release)
        else:
            served.append(seen.raw_path)
        await answer(send)

    with serving(runners=1, handler=handle) as setup, Raw(setup, request_bytes("/block")):
        until(lambda: setup.hosts[0].executing, within_s=PATIENCE_S, what="executing")
        try:
            yield setup, release, served
        finally:
            release.set()


def wait_for_queue(setup: Setup, length: int) -> None:
    until(lambda: setup.status()["queued"] == length, within_s=PATIENCE_S, what=f"{length} wait")


def test_what_has_not_started_in_the_time_its_client_gives_it_is_refused() -> None:
    with busy_runner() as (setup, _, served):
        reply = ask(setup, headers={"X-Fal-Request-Timeout": "0.3"})
        assert reply.status == 504
        assert reply.value("x-fal-request-timeout-type") == "user"
        assert reply.value("x-fal-error-type") == "request_timeout"
        assert "X-Fal-Request-Timeout" in reply.json()["detail"]
        assert served == []


def test_a_deadline_that_is_far_lets_it_wait() -> None:
    with busy_runner() as (setup, release, served), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, setup, path="/kept", headers={"X-Fal-Request-Timeout": "50"})
        wait_for_queue(setup, 1)
        release.set()
        assert waiting.result(PATIENCE_S).status == 200
        assert served == [b"/kept"]


def test_what_has_low_priority_lets_a_later_request_go_first() -> None:
    with busy_runner() as (setup, release, served), ThreadPoolExecutor(2) as pool:
        asked = []
        for n, (path, priority) in enumerate((("/low", "low"), ("/normal", "normal"))):
            asked.append(pool.submit(ask, setup, path=path, headers={"X-Fal-Queue-Priority": priority}))
            wait_for_queue(setup, n + 1)
        release.set()
        assert [reply.result(PATIENCE_S).status for reply in asked] == [200, 200]
        assert served == [b"/normal", b"/low"]


@pytest.mark.parametrize(
    ("header", "value"),
    [
        *(("X-Fal-Request-Timeout", value) for value in ("0", "-1", "0.09", "soon", "inf", "nan", "1_0", "")),
        *(("X-Fal-Queue-Priority", value) for value in ("high", "0")),
    ],
)
def test_a_value_that_is_none_is_refused_by_the_name_of_its_header(header: str, value: str) -> None:
    with serving(runners=1) as setup:
        reply = ask(setup, headers={header: value})
        assert reply.status == 400
        assert reply.json()["detail"].startswith(f"{header}: {value!r} is ")


@pytest.mark.parametrize("path", ["/", "/run/owner/app", "/queue/owner/app"])
@pytest.mark.parametrize("value", ["3600", '{"expiration_duration_seconds": "soon"}'])
def test_a_lifetime_of_files_that_is_none_is_refused(plain: Setup, path: str, value: str) -> None:
    reply = ask(plain, path=path, body=b"{}", headers={"X-Fal-Object-Lifecycle-Preference": value})
    assert (reply.status, reply.json()["error_type"]) == (400, "bad_request")
    assert reply.json()["detail"].startswith("X-Fal-Object-Lifecycle-Preference: ")
    assert plain.hosts[0].seen == []


@pytest.mark.parametrize("path", ["/", "/run/owner/app", "/queue/owner/app"])
def test_a_lifetime_of_files_reaches_the_host_as_it_was_sent(plain: Setup, path: str) -> None:
    value = '{"expiration_duration_seconds":  60, "initial_acl": {"default": "forbid"}}'
    assert (
        ask(plain, path=path, body=b"{}", headers={"X-Fal-Object-Lifecycle-Preference": value}).status == 200
    )
    until(lambda: plain.hosts[0].seen, within_s=PATIENCE_S, what="it arrives")
    assert plain.hosts[0].seen[0].values("x-fal-object-lifecycle-preference") == [value.encode()]
