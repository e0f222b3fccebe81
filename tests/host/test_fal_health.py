"""The regular health check of a fal.App, over an application that does as the test says."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from starlette.types import Receive, Scope, Send

from falctl.host.fal.health import HealthCheck, HealthWatch

CHECK = HealthCheck("/check", every_s=0.0, start_period_s=0.0, timeout_s=60.0, failures_max=3)
STEP_S = 60.0
HANG = 0
RAISE = -1


class Web:
    """Answers one status after the other, the last one for ever."""

    def __init__(self, statuses: Sequence[int]) -> None:
        self.statuses = list(statuses)
        self.calls = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert (scope["method"], scope["path"]) == ("POST", "/check")
        assert (await receive())["body"] == b"{}"
        status = self.statuses[min(self.calls, len(self.statuses) - 1)]
        self.calls += 1
        if status == HANG:
            await asyncio.get_running_loop().create_future()
        if status == RAISE:
            raise RuntimeError("sick")
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


def sick(web: Web, check: HealthCheck = CHECK) -> str:
    async def watch() -> str:
        return await asyncio.wait_for(HealthWatch(check, web).sick(), STEP_S)

    return asyncio.run(watch())


def test_it_is_sick_after_as_many_failures_in_a_row_as_it_says_and_a_success_forgives() -> None:
    web = Web([500, 500, 200, 500, 503, 500])
    assert sick(web) == "health check /check: status 500"
    assert web.calls == 6


@pytest.mark.parametrize("status", [404, 302, RAISE])
def test_every_answer_but_2xx_is_a_failure(status: int) -> None:
    assert sick(Web([status]), replace(CHECK, failures_max=1)).startswith("health check /check: ")


def test_a_check_that_hangs_fails_and_is_not_asked_a_second_time_beside_itself() -> None:
    web = Web([HANG])
    assert "no answer within 0.001 s" in sick(web, replace(CHECK, timeout_s=0.001))
    assert web.calls == 1


def test_failures_within_the_start_period_do_not_count() -> None:
    web = Web([500] * 5)
    sick(web, replace(CHECK, every_s=0.001, start_period_s=1.0, failures_max=1))
    assert web.calls > 1
