"""
The durable queue as fal's clients call it: submit, status and its stream, result, cancel, under ``/queue/{owner}/{alias}``.

Shapes, statuses and words are fal's: its Python client raises KeyError for a status without its key, and ValueError
for one that it does not know.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs

from falctl.clock import monotonic_s, wall_s
from falctl.core.retries import Outcome
from falctl.core.types import RequestId
from falctl.errors import BadRequestError, MethodError, NotFoundError, QueueFullError, StorageFullError
from falctl.router.dispatch.apps import Apps, LocalApp
from falctl.router.dispatch.arrival import arrival
from falctl.router.dispatch.hint import wanted_hint
from falctl.router.edge.answers import ORIGIN, REQUEST_ID
from falctl.router.edge.body import Intake
from falctl.router.edge.call import Call
from falctl.router.fal.address import alias_of, read_address
from falctl.router.fal.queue_status import QueueStatus
from falctl.router.fal.webhooks.target import check_target
from falctl.router.jobs.envelope import Envelope, unpack
from falctl.router.jobs.keeper import Keeper
from falctl.router.jobs.retry_headers import retry_rules
from falctl.router.jobs.room import BRIEF_S
from falctl.router.jobs.told import problem_of
from falctl.router.jobs.waiters import START_TIMEOUT
from falctl.router.passing.proxy import ProxyRules
from falctl.wire import H_ERROR_TYPE

log = logging.getLogger(__name__)

_OUR_QUERY: Final = "fal_"
_ONLY_QUEUED: Final = frozenset(
    {b"x-fal-queue-priority", b"x-fal-request-timeout", b"x-fal-no-retry", b"x-fal-retry-config"}
)
"""fal's gateway takes them, too, before the app sees a request."""
_SECRETS: Final = frozenset({b"authorization", b"proxy-authorization", b"cookie"})
"""What is in a queued request lies on the disk in clear, so that these are not: its app does not get to see them."""
_OF_WHO_FETCHES: Final = frozenset({b"accept-encoding"})
"""Somebody else than its submitter may read the result, and webhooks tell it: it is kept as it is."""
_STORE_IO: Final = b"x-fal-store-io"
_ERROR_TYPE: Final = H_ERROR_TYPE.encode()
_READ: Final = ("GET", "HEAD", "OPTIONS")
_ALLOWED: Final[dict[str, tuple[str, ...]]] = {
    "submit": ("POST", "OPTIONS"),
    "": _READ,
    "response": _READ,
    "status": _READ,
    "status/stream": _READ,
    "cancel": ("PUT", "OPTIONS"),
}
"""What can be asked for, and by which methods."""


@dataclass(frozen=True, slots=True)
class _Target:
    """What a path under ``/queue`` addresses."""

    app: str
    """``owner/alias``."""
    path: bytes
    """Of the app, for a submission."""
    request: RequestId | None = None
    what: str = "submit"
    """What is asked of that request, or "submit"."""


class QueueRoutes:
    """Answers every call under ``/queue``."""

    def __init__(
        self, apps: Apps, keeper: Keeper, status: QueueStatus, intake: Intake, *, rules: ProxyRules
    ) -> None:
        self._apps = apps
        self._keeper = keeper
        self._intake = intake
        self._status = status
        self.rules = rules

    async def serve(self, call: Call) -> None:
        """
        Answer *call*.

        Raises:
            RequestError: it is refused, and nothing has been sent.
        """
        method, target = call.scope["method"], _target(call.scope["raw_path"])
        allowed = _ALLOWED.get(target.what)
        if allowed is None:
            msg = f"nothing at {method} {call.scope['path']}"
            raise NotFoundError(msg)
        if method == "OPTIONS":
            call.body_read = True
            await call.answer(204, [(b"allow", ", ".join(allowed).encode()), (ORIGIN, b"router")], b"")
        elif method not in allowed:
            msg = f"this is asked for by {' or '.join(allowed)}; a request is submitted by POST to /queue/{target.app}"
            raise MethodError(msg, allowed=allowed)
        elif target.request is None:
            await self._submit(call, target)
        else:
            call.body_read = True
            call.request = target.request
            await self._ask(call, target.request, target.what)

    # --- calls -------------------------------------------------------------------------------------

    async def _submit(self, call: Call, target: _Target) -> None:
        query = _query(call)
        if "fal_webhook" in query:
            check_target(query["fal_webhook"])
        app = self._apps.find(alias_of(target.app))
        self._check_length(query, app.alias)
        try:
            body = await self._intake.read(call)
            envelope = self._envelope(call, target, body, app=app)
            live = await self._keeper.submit(call.request, envelope, body)
        finally:
            self._intake.release(call)
        await call.answer_json(200, self._status.queued(live, call, target.app))

    async def _ask(self, call: Call, request: RequestId, what: str) -> None:
        logs = _query(call).get("logs", "0") in ("1", "true")
        match what:
            case "status":
                table = await self._status.now(call, request, logs_from=0 if logs else None)
                await call.answer_json(200 if table["status"] == "COMPLETED" else 202, table)
            case "status/stream":
                await self._status.stream(call, request, logs=logs)
            case "cancel":
                await self._cancel(call, request)
            case _:
                await self._result(call, request)

    async def _result(self, call: Call, request: RequestId) -> None:
        saved = await self._status.saved(request)
        if saved.ending is None:
            msg = "the request has not ended; its status says how far it is"
            raise BadRequestError(msg)
        outcome = saved.ending.outcome
        answer = await self._keeper.store.answer(request)
        if answer is None and not outcome.error_type:
            msg = f"what the app answered to {request} is lost: its file was deleted from the state directory"
            raise NotFoundError(msg)
        if answer is None:
            await call.answer_json(outcome.status, problem_of(outcome), _reasons(outcome))
        else:
            headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
            receipt = [(ORIGIN, b"app"), (REQUEST_ID, request.encode())]
            await call.answer(outcome.status, [*headers, *receipt], answer.body)
        if call.scope["method"] != "HEAD" and unpack(saved.envelope).brief and not call.connection.gone:
            await self._let_leave(request)

    async def _let_leave(self, request: RequestId) -> None:
        """Take note that its client has had the result of what is to be kept only briefly."""
        try:
            await self._keeper.store.let_leave(request, after_s=BRIEF_S)
        except StorageFullError as error:
            log.warning("job.stays request=%s: %s; it leaves after queue.keep", request, error.detail)

    async def _cancel(self, call: Call, request: RequestId) -> None:
        live = self._keeper.find(request)
        try:
            if live is None:
                await self._status.saved(request)
        except NotFoundError as error:
            table = {"status": "NOT_FOUND", "detail": error.detail, "error_type": error.error_type}
            await call.answer_json(error.status, table, [(_ERROR_TYPE, error.error_type.encode())])
            return
        if live is not None and await self._keeper.cancel(live):
            await call.answer_json(202, {"status": "CANCELLATION_REQUESTED"})
        else:
            await call.answer_json(400, {"status": "ALREADY_COMPLETED"})

    # --- parts -------------------------------------------------------------------------------------

    def _envelope(self, call: Call, target: _Target, body: bytes, *, app: LocalApp) -> Envelope:
        wanted = wanted_hint(call.head, body, field=self.rules.hint_from, joint=app.joint)
        arrived = arrival(call, wanted, start_timeout_s=app.start_timeout_s)
        start_by = arrived.start_by
        drop = self.rules.hide | _ONLY_QUEUED | _SECRETS | _OF_WHO_FETCHES
        return Envelope(
            target.app,
            call.scope["method"],
            target.path,
            _app_query(call.scope["query_string"]),
            [(name, value) for name, value in call.scope["headers"] if name not in drop],
            wanted,
            arrived.client,
            arrived.priority,
            None if start_by is None else wall_s() + start_by - monotonic_s(),
            retry_rules(call.head),
            app.alias,
            _query(call).get("fal_webhook"),
            call.head.get(_STORE_IO, b"1").strip() == b"0",
        )

    def _check_length(self, query: dict[str, str], alias: str) -> None:
        given = query.get("fal_max_queue_length")
        if given is None:
            return
        if not (given.isascii() and given.isdecimal()):
            msg = f"fal_max_queue_length: {given!r} is no number of requests"
            raise BadRequestError(msg)
        waiting = len(self._keeper.backlog(alias))
        if waiting > int(given[:20]):
            msg = f"{waiting} requests wait, more than fal_max_queue_length allows"
            raise QueueFullError(msg)


def _target(raw_path: bytes) -> _Target:
    address = read_address(raw_path)
    rest = address.path.split(b"/")[1:]
    if len(rest) >= 2 and rest[0] == b"requests":
        what = b"/".join(rest[2:]).decode("latin-1")
        return _Target(address.app, b"", RequestId(rest[1].decode("latin-1")), what)
    return _Target(address.app, address.path)


def _query(call: Call) -> dict[str, str]:
    found = parse_qs(call.scope["query_string"].decode("latin-1"), keep_blank_values=True)
    return {name: values[0] for name, values in found.items()}


def _app_query(query: bytes) -> bytes:
    """Return *query* without what is meant for the queue."""
    return b"&".join(part for part in query.split(b"&") if not part.startswith(_OUR_QUERY.encode()))


def _reasons(outcome: Outcome) -> list[tuple[bytes, bytes]]:
    """Return the headers that say why no app has answered."""
    headers = [(_ERROR_TYPE, outcome.error_type.encode())]
    if outcome == START_TIMEOUT:
        headers.append((b"x-fal-request-timeout-type", b"user"))
    return headers
