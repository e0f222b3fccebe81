"""
Takes one request to a runner and its answer back to the client.

The request waits for a dispatch, is sent, and is sent elsewhere only if it provably was not let in: the runner
could not be reached, or its host says so. From then on it is answered once, or the client gets a clear error;
after its headers, a connection that breaks. When the client goes, a waiting request is dropped, and a running one
cancelled; its answer is still read to the end, so that its slot is free when the host says so.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from functools import partial
from typing import Final

from falctl.core.events import Dispatch, Refuse
from falctl.core.types import Wanted
from falctl.errors import ClientGoneError, RunnerLostError, UnavailableError
from falctl.router.answers import ORIGIN, REQUEST_ID, RawHeaders, refusal
from falctl.router.apps import LocalApp
from falctl.router.arrival import arrival
from falctl.router.body import Intake
from falctl.router.call import Call
from falctl.router.fleet import FleetLinks
from falctl.router.headers import declare_json, to_client, to_host
from falctl.router.hint import wanted_hint
from falctl.router.ledger import Ledger
from falctl.router.link import Link
from falctl.router.receipt import Timings, read_timings
from falctl.router.transport import Incoming, LostError, Outgoing, UnreachableError
from falctl.tasks import spawn
from falctl.wire import H_CACHE, H_RUNNER

log = logging.getLogger(__name__)

_RUNNER: Final = H_RUNNER.encode()
_CACHE: Final = H_CACHE.encode()


@dataclass(slots=True)
class ProxyRules:
    """What a reload may change."""

    hint_from: str
    hide: frozenset[bytes]
    """Headers of the client that the app does not get to see."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a call is for."""

    app: LocalApp
    path: bytes
    """Of the app, as the client wrote it."""


@dataclass(frozen=True, slots=True)
class _Reached:
    """A runner's answer has begun."""

    dispatch: Dispatch
    link: Link
    incoming: Incoming


class Proxy:
    """See the module."""

    def __init__(self, fleet: FleetLinks, *, intake: Intake, ledger: Ledger, rules: ProxyRules) -> None:
        self._fleet = fleet
        self._intake = intake
        self._ledger = ledger
        self.rules = rules
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def serve(self, call: Call, target: Target) -> None:
        """
        Answer *call* from the app, through its queue.

        Raises:
            RequestError: it was not answered, and nothing has been sent.
        """
        self._active += 1
        self._idle.clear()
        try:
            await self._serve(call, target)
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()

    async def serve_directly(self, call: Call, target: Target) -> None:
        """Answer *call* from any runner of the app, at once and without a slot: what says the same on all of them."""
        link = self._fleet.any_up(target.app)
        if link is None:
            msg = "no runner is ready"
            raise UnavailableError(msg, retry_after_s=1.0)
        call.body_read = True
        try:
            incoming = await link.transport.send(self._outgoing(call, target, None, b""))
        except (UnreachableError, LostError) as error:
            msg = f"runner {link.runner} did not answer"
            raise RunnerLostError(msg) from error
        headers = to_client(incoming.headers, status=incoming.status)
        await self._pass_on(call, incoming, [*headers, (REQUEST_ID, call.request.encode()), (ORIGIN, b"app")])

    async def idle(self) -> None:
        """Wait until no request is being served."""
        await self._idle.wait()

    async def _serve(self, call: Call, target: Target) -> None:
        try:
            body = await self._intake.read(call)
            wanted = wanted_hint(call.head, body, field=self.rules.hint_from)
            reached = await self._reach(call, target, wanted, body)
        finally:
            self._intake.release(call)
        timings = read_timings(reached.incoming.headers).after(reached.dispatch)
        if wanted is not None:
            self._ledger.begin(hit=reached.dispatch.warm if timings.hit is None else timings.hit)
        try:
            whole = await self._pass_on(call, reached.incoming, _receipt(call, reached, timings))
        finally:
            reached.link.ended(call.request)
        if whole:
            self._ledger.finish(arrived_at=call.started_at)
        else:
            log.warning("request.broken request=%s runner=%d", call.request, reached.link.runner)

    async def _reach(self, call: Call, target: Target, wanted: Wanted | None, body: bytes) -> _Reached:
        """Return the beginning of the app's answer, however many dispatches that takes."""
        driver = target.app.driver
        call.connection.on_gone = partial(driver.cancel, call.request)
        outgoing = self._outgoing(call, target, wanted, body)
        self._fleet.refresh()
        arrived = arrival(call, wanted, start_timeout_s=target.app.start_timeout_s)
        decision = driver.submit(arrived)
        while True:
            action = await decision
            if isinstance(action, Refuse):
                raise refusal(action)
            if action is None or call.connection.gone:
                if action is not None:
                    driver.release(action)
                msg = "the client left while its request waited"
                raise ClientGoneError(msg)
            if (reached := await self._try(call, action, outgoing)) is not None:
                return reached
            call.connection.on_gone = partial(driver.cancel, call.request)
            decision = driver.bounce(action, arrived)
            if call.connection.gone:
                driver.cancel(call.request)

    async def _try(self, call: Call, dispatch: Dispatch, outgoing: Outgoing) -> _Reached | None:
        """Return the answer's beginning; None if the runner did not let the request in."""
        link = self._fleet.find(dispatch.runner, dispatch.epoch)
        if link is None:
            return None
        call.connection.on_gone = lambda: _cancel(link, call)
        try:
            incoming = await link.deliver(call.request, outgoing)
        except LostError as error:
            log.warning("request.lost request=%s runner=%d error=%s", call.request, link.runner, error)
            msg = f"runner {link.runner} was lost while it worked on this request"
            raise RunnerLostError(msg) from error
        return None if incoming is None else _Reached(dispatch, link, incoming)

    def _outgoing(self, call: Call, target: Target, wanted: Wanted | None, body: bytes) -> Outgoing:
        scope = call.scope
        given = declare_json(scope["headers"], body)
        headers = to_host(given, request=call.request, wanted=wanted, hide=self.rules.hide)
        return Outgoing(scope["method"], target.path, scope["query_string"], headers, body)

    async def _pass_on(self, call: Call, incoming: Incoming, headers: RawHeaders) -> bool:
        """Send the client an answer as it comes; return False if it broke, and the client's connection with it."""
        try:
            await call.start(incoming.status, headers)
            last = False
            while not last:
                chunk, last = await incoming.read()
                if chunk or last:
                    await call.body(chunk, last=last)
        except LostError:
            call.connection.break_off()
            return False
        finally:
            incoming.close()
        return True


def _cancel(link: Link, call: Call) -> None:
    spawn(link.cancel(call.request), name=f"cancel-{call.request}")


def _receipt(call: Call, reached: _Reached, timings: Timings) -> RawHeaders:
    incoming = reached.incoming
    headers = to_client(incoming.headers, status=incoming.status)
    headers += [
        (REQUEST_ID, call.request.encode()),
        (ORIGIN, b"app"),
        (_RUNNER, str(reached.dispatch.runner).encode()),
        (
            b"server-timing",
            timings.server_timing(queue_s=reached.dispatch.waited_s - reached.dispatch.load_s),
        ),
    ]
    if timings.cache:
        headers.append((_CACHE, timings.cache.encode()))
    return headers
