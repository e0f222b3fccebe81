"""
How far a queued job is, as fal's clients are told: asked for once, or pushed as server-sent events until it has ended.

A stream's events bear only the logs that are new, as fal's JavaScript client expects, which adds them up. Its text is
ASCII: that client decodes it piece by piece.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from falctl.clock import wall_clock
from falctl.core.retries import Outcome
from falctl.core.types import RequestId
from falctl.errors import NotFoundError
from falctl.router.edge.answers import ORIGIN, REQUEST_ID
from falctl.router.edge.call import Call
from falctl.router.jobs.envelope import unpack
from falctl.router.jobs.keeper import Keeper
from falctl.router.jobs.live import Live
from falctl.router.jobs.records import LogLine, SavedJob
from falctl.router.jobs.told import detail_of
from falctl.router.jobs.watch import Watch, Watchers
from falctl.router.own.request_logs import RequestLogs

KEEP_ALIVE_S: Final = 10.0
"""A stream says something at least this often: fal's JavaScript client takes 15 s of silence for a failure."""
_PING: Final = b": ping\n\n"

_Table = dict[str, Any]


@dataclass(slots=True)
class _Stream:
    """One client's stream, and what it has said so far."""

    call: Call
    watch: Watch
    logs: bool
    status: _Table | None = None
    lines: int = 0

    @property
    def complete(self) -> bool:
        """Return whether it has said all that it ever will."""
        return self.watch.over or (self.status is not None and self.status["status"] == "COMPLETED")


class QueueStatus:
    """Tells it of every job that *keeper* knows or has known."""

    def __init__(self, keeper: Keeper, watchers: Watchers, logs: RequestLogs) -> None:
        self._keeper = keeper
        self._watchers = watchers
        self._printed = logs

    def queued(self, live: Live, call: Call, app: str) -> _Table:
        """Return the status of what waits; one that a runner has just been found for has nobody before it."""
        position = self._keeper.position(live.job.request) or 0
        ids = {"request_id": live.job.request, "gateway_request_id": live.job.request}
        return {"status": "IN_QUEUE", "queue_position": position} | ids | _urls(call, app)

    async def now(self, call: Call, request: RequestId, *, logs_from: int | None) -> _Table:
        """
        Return the status as it is, with the logs from that line on; None: without.

        Raises:
            NotFoundError: there is no such job, or none any more.
        """
        live = self._keeper.find(request)
        if live is not None and live.job.state == "waiting":
            return self.queued(live, call, live.envelope.app)
        # The state is asked for before the logs: what is printed until the end is in the last event.
        if live is not None:
            envelope, ending = live.envelope, None
        else:
            saved = await self.saved(request)
            envelope, ending = unpack(saved.envelope), saved.ending
        if ending is not None and logs_from is not None:
            await self._printed.settled(request)
        known: _Table = {"request_id": request, "logs": await self._logs(request, logs_from)}
        common = known | _urls(call, envelope.app)
        if ending is None:
            return {"status": "IN_PROGRESS"} | common
        metrics = {} if ending.inference_s is None else {"inference_time": ending.inference_s}
        return {"status": "COMPLETED", "metrics": metrics} | _error(ending.outcome) | common

    async def stream(self, call: Call, request: RequestId, *, logs: bool) -> None:
        """Push it until the job has ended, the client is gone or the router ends. Raises NotFoundError."""
        with self._watchers.watch(request) as watch:  # before the first look: nothing is missed in between
            stream = _Stream(call, watch, logs)
            event = await self._next(stream)
            await call.start(200, _event_stream(request))
            call.connection.on_gone = watch.end
            if not call.connection.gone and call.scope["method"] != "HEAD":
                await self._push(stream, event)
            call.connection.on_gone = None
            await call.body(b"", last=True)

    async def saved(self, request: RequestId) -> SavedJob:
        """Return the job as it stands on the disk. Raises NotFoundError."""
        saved = await self._keeper.store.find(request)
        if saved is None:
            msg = f"no request {request}; results are deleted after queue.keep"
            raise NotFoundError(msg)
        return saved

    async def _push(self, stream: _Stream, event: bytes) -> None:
        while True:
            if event:
                await stream.call.body(event, last=False)
            if stream.complete:
                return
            event = _PING
            if await stream.watch.changed(within_s=KEEP_ALIVE_S) and not stream.call.connection.gone:
                try:
                    event = await self._next(stream)
                except NotFoundError:
                    return  # it has ended, and its place was wanted at once

    async def _next(self, stream: _Stream) -> bytes:
        """Return the event that says what *stream* has not said; empty: there is nothing."""
        request = stream.call.request
        table = await self.now(stream.call, request, logs_from=stream.lines if stream.logs else None)
        new = table.get("logs") or []
        if not new and stream.status is not None and _but_logs(table) == _but_logs(stream.status):
            return b""
        stream.status, stream.lines = table, stream.lines + len(new)
        return b"data: " + json.dumps(table).encode() + b"\n\n"

    async def _logs(self, request: RequestId, logs_from: int | None) -> list[dict[str, str]] | None:
        if logs_from is None:
            return None
        return [_log(line) for line in await self._printed.lines(request, skip=logs_from)]


def _event_stream(request: RequestId) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
        (ORIGIN, b"router"),
        (REQUEST_ID, request.encode()),
    ]


def _but_logs(table: _Table) -> _Table:
    return {name: value for name, value in table.items() if name != "logs"}


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
    kind = outcome.error_type or ("runner_server_error" if outcome.status >= 500 else "")
    return {"error": detail_of(outcome)} | ({"error_type": kind} if kind else {})
