"""
How far a queued job is, as fal's clients are told: asked for once, or pushed as server-sent events until it has ended.

A stream's events bear only the logs that are new, as fal's JavaScript client expects, which adds them up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from falctl.clock import wall_clock
from falctl.core.retries import Outcome
from falctl.core.types import RequestId
from falctl.errors import NotFoundError
from falctl.router.edge.call import Call
from falctl.router.jobs.envelope import unpack
from falctl.router.jobs.keeper import Keeper
from falctl.router.jobs.live import Live
from falctl.router.jobs.push import push
from falctl.router.jobs.records import LogLine, SavedJob
from falctl.router.jobs.told import detail_of
from falctl.router.jobs.watch import Watchers
from falctl.router.own.request_logs import RequestLogs

_Table = dict[str, Any]


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
            await push(call, request, _Teller(self, call, logs), watch)

    async def saved(self, request: RequestId) -> SavedJob:
        """Return the job as it stands on the disk. Raises NotFoundError."""
        saved = await self._keeper.store.find(request)
        if saved is None:
            msg = f"no request {request}; results are deleted after queue.keep"
            raise NotFoundError(msg)
        return saved

    async def _logs(self, request: RequestId, logs_from: int | None) -> list[dict[str, str]] | None:
        if logs_from is None:
            return None
        return [_log(line) for line in await self._printed.lines(request, skip=logs_from)]


@dataclass(slots=True)
class _Teller:
    """Tells one client."""

    owner: QueueStatus
    call: Call
    logs: bool
    status: _Table | None = None
    lines: int = 0

    @property
    def complete(self) -> bool:
        """Return whether the job has ended, as it has said."""
        return self.status is not None and self.status["status"] == "COMPLETED"

    async def next(self) -> _Table | None:
        """Return the status with the logs that are new, if any of it is. Raises NotFoundError."""
        request = self.call.request
        table = await self.owner.now(self.call, request, logs_from=self.lines if self.logs else None)
        new = table.get("logs") or []
        if not new and self.status is not None and _but_logs(table) == _but_logs(self.status):
            return None
        self.status, self.lines = table, self.lines + len(new)
        return table


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
