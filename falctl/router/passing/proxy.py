"""
Takes one request to a runner and its answer back to the client.

The request is answered once, or the client gets a clear error; after its headers, a connection that breaks. When the
client goes, its answer is still read to the end, so that its slot is free when the host says so.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from falctl.core.events import Dispatch
from falctl.core.types import Wanted
from falctl.errors import RunnerLostError, UnavailableError
from falctl.router.dispatch.activity import Activity
from falctl.router.dispatch.hint import wanted_hint
from falctl.router.edge.answers import ORIGIN, REQUEST_ID, RawHeaders
from falctl.router.edge.body import Intake
from falctl.router.edge.call import Call
from falctl.router.own.ledger import Ledger
from falctl.router.passing.headers import declare_json, to_client, to_host
from falctl.router.passing.options import outlives_client
from falctl.router.passing.reach import Reached, Target, reach
from falctl.router.passing.receipt import Timings, read_timings, receipt
from falctl.router.runners.fleet import FleetLinks
from falctl.router.runners.link import Link
from falctl.router.runners.transport import Incoming, LostError, Outgoing, UnreachableError

log = logging.getLogger(__name__)


@dataclass(slots=True)
class ProxyRules:
    """What a reload may change."""

    hint_from: str
    hide: frozenset[bytes]
    """Headers of the client that the app does not get to see."""


class Proxy:
    """See the module."""

    def __init__(
        self, fleet: FleetLinks, *, intake: Intake, ledger: Ledger, rules: ProxyRules, activity: Activity
    ) -> None:
        self._fleet = fleet
        self._intake = intake
        self._ledger = ledger
        self.rules = rules
        self._activity = activity

    async def serve(self, call: Call, target: Target) -> None:
        """
        Answer *call* from the app, through its queue.

        Raises:
            RequestError: it was not answered, and nothing has been sent.
        """
        call.outlives_client = outlives_client(call.head)
        with self._activity.one():
            await self._serve(call, target)

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

    async def _serve(self, call: Call, target: Target) -> None:
        try:
            body = await self._intake.read(call)
            app = target.app
            wanted = wanted_hint(call.head, body, field=self.rules.hint_from, joint=app.joint)

            async def deliver(link: Link) -> Incoming | None:
                return await link.deliver(call.request, self._outgoing(call, target, wanted, body))

            reached = await reach(call, app, wanted=wanted, fleet=self._fleet, deliver=deliver)
        finally:
            self._intake.release(call)
        timings = read_timings(reached.answer.headers).after(reached.dispatch)
        if wanted is not None:
            self._ledger.begin(hit=timings.warm(reached.dispatch))
        await self.answer(call, reached, reached.answer)

    async def answer(self, call: Call, reached: Reached[Any], incoming: Incoming) -> None:
        """Pass on *incoming*, with which a runner has begun to answer *call*."""
        timings = read_timings(incoming.headers).after(reached.dispatch)
        headers = _receipt(call, reached.dispatch, incoming, timings)
        self._ledger.answer(call.request, incoming.status)
        try:
            whole = await self._pass_on(call, incoming, headers)
        finally:
            reached.link.ended(call.request)
        if whole:
            self._ledger.finish(arrived_at=call.started_at)
        else:
            log.warning("request.broken request=%s runner=%d", call.request, reached.link.runner)

    def _outgoing(self, call: Call, target: Target, wanted: Wanted | None, body: bytes) -> Outgoing:
        scope = call.scope
        given = declare_json(scope["headers"], body)
        wanted = target.app.named(wanted)
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


def _receipt(call: Call, dispatch: Dispatch, incoming: Incoming, timings: Timings) -> RawHeaders:
    headers = to_client(incoming.headers, status=incoming.status)
    headers += [(REQUEST_ID, call.request.encode()), (ORIGIN, b"app"), *receipt(dispatch, timings)]
    return headers
