"""
Takes one request to a runner that lets it in.

The request waits for a dispatch, is delivered, and is delivered elsewhere only if it provably was not let in: the
runner could not be reached, or its host says so. When the client goes, a waiting request is dropped, and a running one
cancelled, unless it is to outlive its client.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeAlias, TypeVar

from falctl.core.events import Dispatch, Refuse
from falctl.core.types import Wanted
from falctl.errors import ClientGoneError, RunnerLostError
from falctl.router.dispatch.apps import LocalApp
from falctl.router.dispatch.arrival import arrival
from falctl.router.edge.answers import refusal
from falctl.router.edge.call import Call
from falctl.router.runners.fleet import FleetLinks
from falctl.router.runners.link import Link
from falctl.router.runners.transport import LostError
from falctl.tasks import spawn

log = logging.getLogger(__name__)

A = TypeVar("A")

Deliver: TypeAlias = Callable[[Link], Awaitable[A | None]]
"""Returns the beginning of an answer; None: the host did not let the request in. Raises LostError."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a call is for."""

    app: LocalApp
    path: bytes
    """Of the app, as the client wrote it."""


@dataclass(frozen=True, slots=True)
class Reached(Generic[A]):
    """A runner has let a request in, and its answer has begun."""

    dispatch: Dispatch
    link: Link
    answer: A


async def reach(
    call: Call, app: LocalApp, *, wanted: Wanted | None, fleet: FleetLinks, deliver: Deliver[A]
) -> Reached[A]:
    """
    Return the beginning of the answer to *call*, however many dispatches that takes.

    Raises:
        RequestError: it was refused, or lost.
    """
    driver = app.driver
    call.when_abandoned(partial(driver.cancel, call.request))
    fleet.refresh()
    arrived = arrival(call, wanted, start_timeout_s=app.start_timeout_s)
    decision = driver.submit(arrived)
    while True:
        action = await decision
        if isinstance(action, Refuse):
            raise refusal(action)
        if action is None or call.abandoned:
            if action is not None:
                driver.release(action)
            msg = "the client left while its request waited"
            raise ClientGoneError(msg)
        link = fleet.find(action.runner, action.epoch)
        if link is not None and (answer := await _try(call, link, deliver)) is not None:
            return Reached(action, link, answer)
        call.when_abandoned(partial(driver.cancel, call.request))
        decision = driver.bounce(action, arrived)
        if call.abandoned:
            driver.cancel(call.request)


async def _try(call: Call, link: Link, deliver: Deliver[A]) -> A | None:
    call.when_abandoned(lambda: _cancel(link, call))
    try:
        return await deliver(link)
    except LostError as error:
        log.warning("request.lost request=%s runner=%d error=%s", call.request, link.runner, error)
        msg = f"runner {link.runner} was lost while it worked on this request"
        raise RunnerLostError(msg) from error


def _cancel(link: Link, call: Call) -> None:
    spawn(link.cancel(call.request), name=f"cancel-{call.request}")
