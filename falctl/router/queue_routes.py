"""
The durable queue as fal's clients call it: submit, status, result, cancel, under ``/queue/{owner}/{alias}``.

Shapes, statuses and words are fal's: its Python client raises KeyError for a status without its key, and ValueError
for one that it does not know.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs

from falctl.clock import monotonic_s, wall_clock
from falctl.core.jobs import CANCELLED
from falctl.core.retries import Outcome
from falctl.core.types import RequestId
from falctl.errors import BadRequestError, NotFoundError, QueueFullError
from falctl.router.address import read_address
from falctl.router.answers import ORIGIN, REQUEST_ID
from falctl.router.arrival import arrival
from falctl.router.body import Intake
from falctl.router.call import Call
from falctl.router.hint import wanted_hint
from falctl.router.jobs.envelope import Envelope, unpack
from falctl.router.jobs.keeper import Keeper
from falctl.router.jobs.live import Live
from falctl.router.jobs.records import LogLine, SavedJob
from falctl.router.jobs.retry_headers import retry_rules
from falctl.router.proxy import ProxyRules
from falctl.router.request_logs import RequestLogs
from falctl.wire import H_ERROR_TYPE

_OUR_QUERY: Final = "fal_"
_ONLY_QUEUED: Final = frozenset(
    {b"x-fal-queue-priority", b"x-fal-request-timeout", b"x-fal-no-retry", b"x-fal-retry-config"}
)
"""fal's gateway takes them, too, before the app sees a request."""


@dataclass(frozen=True, slots=True)
class _Target:
    """What a path under ``/queue`` addresses."""

    app: str
    path: bytes
    """Of the app, for a submission."""
    request: RequestId | None = None
    what: str = ""
    """What is asked of that request: "", "response", "status" or "cancel"."""


class QueueRoutes:
    """Answers every call under ``/queue``."""

    def __init__(self, keeper: Keeper, intake: Intake, *, logs: RequestLogs, rules: ProxyRules) -> None:
        self._keeper = keeper
        self._logs = logs
        self._intake = intake
        self.rules = rules

    async def serve(self, call: Call) -> None:
        """
        Answer *call*.

        Raises:
            RequestError: it is refused, and nothing has been sent.
        """
        method, target = call.scope["method"], _target(call.scope["raw_path"])
        if target.request is None:
            if method != "POST":
                msg = "a job is submitted by POST; its status is at .../requests/{request_id}/status"
                raise BadRequestError(msg)
            return await self._submit(call, target)
        call.body_read = True
        call.request = target.request
        match method, target.what:
            case ("GET", "status"):
                await self._status(call, target.request)
            case ("GET", "" | "response"):
                await self._result(call, target.request)
            case ("PUT", "cancel"):
                await self._cancel(call, target.request)
            case _:
                msg = f"nothing at {method} {call.scope['path']}"
                raise NotFoundError(msg)
        return None

    # --- calls -------------------------------------------------------------------------------------

    async def _submit(self, call: Call, target: _Target) -> None:
        query = _query(call)
        if "fal_webhook" in query:
            msg = "fal_webhook: this version of falctl calls no webhooks; ask for the status instead"
            raise BadRequestError(msg)
        self._check_length(query)
        try:
            body = await self._intake.read(call)
            envelope = self._envelope(call, target, body)
            live = await self._keeper.submit(call.request, envelope, body)
        finally:
            self._intake.release(call)
        await _send(call, 200, _queued(live, self._keeper) | _urls(call, target.app))

    async def _status(self, call: Call, request: RequestId) -> None:
        wants_logs = _query(call).get("logs", "0") in ("1", "true")
        live = self._keeper.find(request)
        if live is not None and live.job.state == "waiting":
            await _send(call, 202, _queued(live, self._keeper) | _urls(call, live.envelope.app))
            return
        saved = await self._saved(request)
        logs = await self._told(saved) if wants_logs else None
        app = unpack(saved.envelope).app
        common = {"request_id": request, "logs": logs} | _urls(call, app)
        if saved.ending is None:
            await _send(call, 202, {"status": "IN_PROGRESS"} | common)
            return
        known = {"status": "COMPLETED", "metrics": {"inference_time": saved.ending.inference_s}}
        await _send(call, 200, known | _error(saved.ending.outcome) | common)

    async def _result(self, call: Call, request: RequestId) -> None:
        saved = await self._saved(request)
        if saved.ending is None:
            msg = "the request has not ended; its status says how far it is"
            raise BadRequestError(msg)
        answer = await self._keeper.store.answer(request)
        if answer is not None:
            headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
            receipt = [(ORIGIN, b"app"), (REQUEST_ID, request.encode())]
            await call.answer(saved.ending.outcome.status, [*headers, *receipt], answer.body)
            return
        outcome = saved.ending.outcome
        problem = {"detail": _detail(outcome), "error_type": outcome.error_type}
        await _send(call, outcome.status, problem, error_type=outcome.error_type)

    async def _cancel(self, call: Call, request: RequestId) -> None:
        live = self._keeper.find(request)
        if live is None:
            await self._saved(request)
        if live is not None and await self._keeper.cancel(live):
            await _send(call, 202, {"status": "CANCELLATION_REQUESTED"})
        else:
            await _send(call, 400, {"status": "ALREADY_COMPLETED"})

    # --- parts -------------------------------------------------------------------------------------

    def _envelope(self, call: Call, target: _Target, body: bytes) -> Envelope:
        wanted = wanted_hint(call.head, body, field=self.rules.hint_from)
        arrived = arrival(call, wanted)
        start_by = arrived.start_by
        drop = self.rules.hide | _ONLY_QUEUED
        return Envelope(
            target.app,
            call.scope["method"],
            target.path,
            _app_query(call.scope["query_string"]),
            [(name, value) for name, value in call.scope["headers"] if name not in drop],
            wanted,
            arrived.client,
            arrived.priority,
            None if start_by is None else wall_clock().timestamp() + start_by - monotonic_s(),
            retry_rules(call.head),
        )

    def _check_length(self, query: dict[str, str]) -> None:
        given = query.get("fal_max_queue_length")
        if given is None:
            return
        if not (given.isascii() and given.isdecimal()):
            msg = f"fal_max_queue_length: {given!r} is no number of requests"
            raise BadRequestError(msg)
        waiting = len(self._keeper.backlog)
        if waiting > int(given[:20]):
            msg = f"{waiting} requests wait, more than fal_max_queue_length allows"
            raise QueueFullError(msg)

    async def _told(self, saved: SavedJob) -> list[dict[str, str]]:
        """Return what its app has printed for a job; all of it once it has ended."""
        ended = saved.ending is not None
        lines = self._logs.all_lines if ended else self._logs.lines
        return [_log(line) for line in await lines(saved.request)]

    async def _saved(self, request: RequestId) -> SavedJob:
        saved = await self._keeper.store.find(request)
        if saved is None:
            msg = f"no request {request}; results are deleted after queue.keep"
            raise NotFoundError(msg)
        return saved


def _target(raw_path: bytes) -> _Target:
    address = read_address(raw_path)
    rest = address.path.split(b"/")[1:]
    if len(rest) in (2, 3) and rest[0] == b"requests":
        what = rest[2].decode("latin-1") if len(rest) == 3 else ""
        return _Target(address.app, b"", RequestId(rest[1].decode("latin-1")), what)
    return _Target(address.app, address.path)


def _query(call: Call) -> dict[str, str]:
    found = parse_qs(call.scope["query_string"].decode("latin-1"), keep_blank_values=True)
    return {name: values[0] for name, values in found.items()}


def _app_query(query: bytes) -> bytes:
    """Return *query* without what is meant for the queue."""
    return b"&".join(part for part in query.split(b"&") if not part.startswith(_OUR_QUERY.encode()))


def _queued(live: Live, keeper: Keeper) -> dict[str, Any]:
    """Return the status of what waits; one that a runner has just been found for has nobody before it."""
    position = keeper.backlog.position(live.job.request) or 0
    return {"status": "IN_QUEUE", "request_id": live.job.request, "queue_position": position}


def _urls(call: Call, app: str) -> dict[str, str]:
    host = call.head.get(b"host", b"").decode("latin-1")
    base = f"{call.scope['scheme']}://{host}/queue/{app}/requests/{call.request}"
    return {"response_url": base, "status_url": f"{base}/status", "cancel_url": f"{base}/cancel"}


def _log(line: LogLine) -> dict[str, str]:
    at = wall_clock().fromtimestamp(line.at).astimezone().isoformat()
    return {"message": line.message, "level": line.level, "source": "USER", "timestamp": at}


def _error(outcome: Outcome) -> dict[str, str]:
    if outcome.status < 400:
        return {}
    return {"error": _detail(outcome), "error_type": outcome.error_type or "app_error"}


def _detail(outcome: Outcome) -> str:
    if outcome == CANCELLED:
        return "the request was cancelled"
    return outcome.error_type.replace("_", " ") or f"the app answered {outcome.status}"


async def _send(call: Call, status: int, body: dict[str, Any], *, error_type: str = "") -> None:
    content = json.dumps(body).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (ORIGIN, b"router"),
        (REQUEST_ID, call.request.encode()),
    ]
    if error_type:
        headers.append((H_ERROR_TYPE.encode(), error_type.encode()))
    await call.answer(status, headers, content)
