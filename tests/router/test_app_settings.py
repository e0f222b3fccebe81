"""What an app declares, and its hosts tell: when its requests are too late, and when they are tried again."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.types import Send

from tests.router.client import Later, ask
from tests.router.fake_host import PATIENCE_S, Gate, Seen, answer
from tests.router.harness import Setup, serving
from tests.wait import until

SKIPS: dict[str, Any] = {"retry_skips": ["connection_error"]}
TWO = {"draw": [0], "speak": [1]}


def submit(setup: Setup, alias: str = "app", headers: dict[str, str] | None = None) -> str:
    reply = ask(setup, path=f"/queue/me/{alias}", body=b"{}", headers=headers or {})
    assert reply.status == 200, reply.body
    request: str = reply.json()["request_id"]
    return request


def status(setup: Setup, request: str) -> dict[str, Any]:
    table: dict[str, Any] = ask(setup, "GET", f"/queue/me/app/requests/{request}/status").json()
    return table


def ends(setup: Setup, request: str) -> int:
    """Return the status of the result, once there is one."""
    until(lambda: status(setup, request)["status"] == "COMPLETED", within_s=PATIENCE_S, what="its end")
    return ask(setup, "GET", f"/queue/me/app/requests/{request}").status


async def breaks(_: Seen, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
    await send({"type": "http.response.body", "body": b"x", "more_body": False})


async def times_out(_: Seen, send: Send) -> None:
    await answer(send, status=504, headers=((b"x-fal-error-type", b"request_timeout"),))


# --- the start deadline ----------------------------------------------------------------------------


def test_a_request_that_says_nothing_has_the_start_deadline_of_its_app() -> None:
    gate = Gate()
    with serving(handler=gate, declares={"start_timeout_s": 0.3}) as setup:
        later = Later()
        later.ask(setup)
        until(lambda: setup.hosts[0].executing, within_s=PATIENCE_S, what="executing")
        late = ask(setup)
        assert (late.status, late.value("x-fal-error-type")) == (504, "request_timeout")
        assert "the app's request_start_timeout" in late.json()["detail"]
        queued = submit(setup)
        assert ends(setup, queued) == 504
        patient = submit(setup, headers={"x-fal-request-timeout": "600"})
        assert status(setup, patient)["status"] == "IN_QUEUE"
        gate.opened.set()
        assert [reply.status for reply in later.all()] == [200]
        assert ends(setup, patient) == 200


def test_the_deadline_of_one_app_is_none_of_the_other() -> None:
    gate = Gate()
    with serving(runners=2, apps=TWO, handler=gate) as setup:
        # Only the first declares one; its stream is opened anew, so that the router hears of it.
        setup.hosts[0].declares = {"start_timeout_s": 0.3}
        setup.hosts[0].drop_streams()
        until(lambda: setup.hosts[0].streams_opened == 2, within_s=PATIENCE_S, what="a new stream")
        setup.wait_up(0, 1)
        later = Later()
        for alias in TWO:
            later.ask(setup, path=f"/run/me/{alias}")
        until(
            lambda: all(host.executing for host in setup.hosts.values()),
            within_s=PATIENCE_S,
            what="both busy",
        )
        speaking = submit(setup, "speak")
        assert ask(setup, path="/run/me/draw").status == 504
        assert status(setup, speaking)["status"] == "IN_QUEUE"
        gate.opened.set()
        later.all()
        assert ends(setup, speaking) == 200


# --- retries ---------------------------------------------------------------------------------------


def attempts(setup: Setup) -> int:
    return len(setup.hosts[0].seen)


@pytest.mark.parametrize(
    ("declares", "headers", "made"),
    [
        ({"retry_skips": ["timeout"]}, {}, 1),
        ({"retries": {"timeout": 2}}, {}, 3),
        ({"retries": {"server_error": 0}}, {"x-fal-retry-config": '{"timeout": {"retries": 1}}'}, 2),
        ({"retries": {"timeout": 5}}, {"x-fal-retry-config": '{"timeout": {"retries": 1}}'}, 2),
        ({"retry_skips": ["timeout"]}, {"x-fal-retry-config": '{"timeout": {"retries": 1}}'}, 2),
        ({"retries": {"timeout": 5}}, {"x-fal-no-retry": "1"}, 1),
    ],
)
def test_the_request_is_asked_before_the_app(
    declares: dict[str, Any], headers: dict[str, str], made: int
) -> None:
    with serving(handler=times_out, declares=declares) as setup:
        assert ends(setup, submit(setup, headers=headers)) == 504
        assert attempts(setup) == made


def test_a_job_that_came_before_its_runner_goes_by_the_rules_of_the_app_all_the_same() -> None:
    setup = Setup()
    try:
        setup.put_life(0, 1, "starting")
        setup.start_router()
        job = submit(setup)
        assert status(setup, job)["status"] == "IN_QUEUE"
        setup.add_host(0, handler=times_out, declares={"retry_skips": ["timeout"]})
        setup.change(0, 1, "ready")
        assert ends(setup, job) == 504
        assert attempts(setup) == 1
    finally:
        setup.close()


def killed_in_mid_attempt(setup: Setup, *jobs: str) -> None:
    until(lambda: setup.hosts[0].executing, within_s=PATIENCE_S, what="executing")
    assert {status(setup, job)["status"] for job in jobs[:1]} == {"IN_PROGRESS"}
    assert setup.router is not None
    setup.router.kill()


def test_what_a_dead_router_had_under_way_ends_if_its_app_wants_no_second_attempt() -> None:
    gate = Gate()
    with serving(handler=gate, declares=SKIPS) as setup:
        job = submit(setup)
        killed_in_mid_attempt(setup, job)
        gate.opened.set()
        setup.start_router()
        assert ends(setup, job) == 503
        assert status(setup, job)["error_type"] == "runner_disconnected"
        assert attempts(setup) == 1


def test_until_the_app_has_spoken_such_a_job_is_in_progress_and_can_be_cancelled() -> None:
    gate = Gate()
    with serving(slots=2, handler=gate, declares=SKIPS) as setup:
        job, unwanted = submit(setup), submit(setup)
        until(lambda: len(setup.hosts[0].executing) == 2, within_s=PATIENCE_S, what="executing")
        killed_in_mid_attempt(setup, job)
        setup.hosts[0].streams_refused = 10_000
        setup.start_router(wait_for_runners=False)
        assert {status(setup, j)["status"] for j in (job, unwanted)} == {"IN_PROGRESS"}
        assert ask(setup, "PUT", f"/queue/me/app/requests/{unwanted}/cancel").status == 202
        assert ends(setup, unwanted) == 499
        assert status(setup, job)["status"] == "IN_PROGRESS"
        setup.hosts[0].streams_refused = 0
        gate.opened.set()
        assert ends(setup, job) == 503


def test_a_runner_that_is_lost_after_the_time_of_its_app_was_ended_for_it() -> None:
    with serving(handler=breaks, declares={"request_timeout_s": 1e-6, "retry_skips": ["timeout"]}) as setup:
        job = submit(setup)
        assert ends(setup, job) == 504
        assert status(setup, job)["error_type"] == "request_timeout"
        assert attempts(setup) == 1


# --- its name --------------------------------------------------------------------------------------


def test_the_name_of_the_only_app_is_told_and_aliases_go_before_names() -> None:
    with serving(declares={"app_name": "any-model"}) as setup:
        assert setup.status()["app"] == "any-model"
        assert ask(setup, path="/run/me/whatever").status == 200
    with serving(runners=2, apps=TWO, declares={"app_name": "any-model"}) as setup:
        assert [runner["app"] for runner in setup.status()["runners"]] == ["draw", "speak"]
        assert ask(setup, path="/run/me/any-model").status == 404
