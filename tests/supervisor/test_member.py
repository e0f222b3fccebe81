"""What a child tells the supervisor reaches its machine."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable

from falctl import wire
from falctl.core.lifecycle import Begin, LifeLimits, Watched
from falctl.core.types import Epoch
from falctl.supervisor.child import Launch
from falctl.supervisor.member import Member

LIMITS = LifeLimits(
    setup_timeout_s=600.0,
    request_timeout_s=3600.0,
    stall_timeout_s=120.0,
    restarts_max=5,
    restarts_window_s=600.0,
    backoff_min_s=1.0,
    backoff_max_s=60.0,
)


def never(_: Epoch) -> Launch:
    raise AssertionError


def test_what_an_app_declares_reaches_its_life_and_its_name_is_kept() -> None:
    member = Member("m", LIMITS, launch=never, changed=lambda: None, buried=lambda: None)
    member.life.handle(Begin(), now=0.0)
    epoch = member.life.epoch
    member._hear(epoch, wire.Declared(1000.0, None))
    assert member.life.handle(Watched(epoch, None), now=1500.0) == []
    assert member.life.handle(Watched(epoch, None), now=1601.0) != []
    member._hear(epoch, wire.Ready(1, 5.0, "my-app"))
    assert (member.app_name, member.grace_s, member.life.state) == ("my-app", 5.0, "ready")


def test_what_was_made_for_a_child_that_cannot_be_started_is_taken_back() -> None:
    buried: list[None] = []

    def fail(_: Epoch) -> Launch:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    async def begin() -> None:
        member = Member("m", LIMITS, launch=fail, changed=lambda: None, buried=lambda: buried.append(None))
        member.feed(Begin())
        await asyncio.wait_for(_until(lambda: member.life.state == "backoff"), 60)
        await member.stop(within_s=0)

    asyncio.run(begin())
    assert buried == [None]


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - the machine has no event for it
        await asyncio.sleep(0.01)
