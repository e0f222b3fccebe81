"""Takes one attempt of a job to its runner and brings the whole answer back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from falctl.clock import monotonic_s
from falctl.core.events import Dispatch
from falctl.core.jobs import LOST
from falctl.core.retries import Outcome
from falctl.core.types import RequestId
from falctl.router.dispatch.apps import Apps
from falctl.router.jobs.envelope import Envelope
from falctl.router.jobs.records import Answer
from falctl.router.jobs.retry_headers import needs_retry
from falctl.router.own.ledger import Ledger
from falctl.router.passing.headers import declare_json, to_client, to_host
from falctl.router.passing.receipt import Timings, read_timings, receipt
from falctl.router.runners.fleet import FleetLinks
from falctl.router.runners.link import Link
from falctl.router.runners.transport import Incoming, LostError, Outgoing
from falctl.wire import H_ERROR_TYPE

_ERROR_TYPE: Final = H_ERROR_TYPE.encode()
_INCOMPLETE: Final = Outcome(502, "runner_incomplete_response", "server_error")
_TIMEOUT: Final = Outcome(504, "request_timeout", "timeout")


@dataclass(frozen=True, slots=True)
class Delivered:
    """What became of an attempt; ``answer`` is None if none came."""

    outcome: Outcome
    answer: Answer | None
    took_s: float


class Courier:
    """``timeout_s`` is `runners.request_timeout`, which counts where an app sets none."""

    def __init__(self, fleet: FleetLinks, apps: Apps, ledger: Ledger, *, timeout_s: float) -> None:
        self._fleet = fleet
        self._apps = apps
        self._ledger = ledger
        self.timeout_s = timeout_s

    async def deliver(self, dispatch: Dispatch, envelope: Envelope, body: bytes) -> Delivered | None:
        """Return what became of it; None: the runner did not let it in."""
        link = self._fleet.find(dispatch.runner, dispatch.epoch)
        if link is None:
            return None
        began_at = monotonic_s()
        try:
            wanted = self._apps.of(link.runner).named(envelope.wanted)
            outgoing = _outgoing(dispatch.request, replace(envelope, wanted=wanted), body)
            incoming = await link.deliver(dispatch.request, outgoing)
        except LostError:
            return self._lost(link, LOST, began_at)
        if incoming is None:
            return None
        timings = read_timings(incoming.headers).after(dispatch)
        if envelope.wanted is not None:
            self._ledger.begin(hit=timings.warm(dispatch))
        return await self._whole(link, incoming, dispatch=dispatch, timings=timings, began_at=began_at)

    def stop(self, request: RequestId, then: Callable[[], None] = lambda: None) -> None:
        """Have *request* cancelled wherever it is executed; call *then* when nobody can be at it any more."""
        self._fleet.orphans.when_gone(request, then)

    async def _whole(
        self, link: Link, incoming: Incoming, *, dispatch: Dispatch, timings: Timings, began_at: float
    ) -> Delivered:
        chunks, last = list[bytes](), False
        try:
            while not last:
                chunk, last = await incoming.read()
                chunks.append(chunk)
        except LostError:
            return self._lost(link, _INCOMPLETE, began_at)
        finally:
            incoming.close()
            link.ended(dispatch.request)
        self._ledger.finish(arrived_at=began_at - dispatch.waited_s)
        headers = [*to_client(incoming.headers, status=incoming.status), *receipt(dispatch, timings)]
        text = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)
        outcome = _outcome(incoming)
        return Delivered(outcome, Answer(text, b"".join(chunks)), monotonic_s() - began_at)

    def _lost(self, link: Link, outcome: Outcome, began_at: float) -> Delivered:
        """A runner that is lost after so long a time was ended for it."""
        took_s = monotonic_s() - began_at
        timeout_s = self._apps.of(link.runner).request_timeout_s or self.timeout_s
        return Delivered(_TIMEOUT if took_s >= timeout_s else outcome, None, took_s)


def _outcome(incoming: Incoming) -> Outcome:
    """Return what an answer is; that the app's time is over is for our host to say, and it names no other type."""
    said, kind = needs_retry(incoming.headers), ""
    if incoming.status >= 400:
        types = (value for name, value in incoming.headers if name.lower() == _ERROR_TYPE)
        kind = next(types, b"").decode("latin-1")
    if (incoming.status, kind) == (_TIMEOUT.status, _TIMEOUT.error_type):
        return replace(_TIMEOUT, needs_retry=said)
    return Outcome(incoming.status, kind, needs_retry=said)


def _outgoing(request: RequestId, envelope: Envelope, body: bytes) -> Outgoing:
    given = declare_json(envelope.headers, body)
    headers = to_host(given, request=request, wanted=envelope.wanted, hide=frozenset())
    return Outgoing(envelope.method, envelope.path, envelope.query, headers, body)
