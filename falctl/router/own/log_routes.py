"""`GET /falctl/logs/{id}`: what an app has printed for one request, as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final, Literal, TypeAlias

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from falctl.core.types import RequestId
from falctl.errors import NotFoundError
from falctl.router.jobs.keeper import Keeper
from falctl.router.own.reasons import Reasons
from falctl.router.own.request_logs import RequestLogs

SCHEMA: Final = 1
"""A new field does not raise it; a removed or changed one does."""

_State: TypeAlias = Literal["waiting", "running", "ended"]


class LogReader:
    """Finds a request, whatever kind it is, and what was printed for it."""

    def __init__(self, logs: RequestLogs, keeper: Keeper, reasons: Reasons) -> None:
        self._logs = logs
        self._keeper = keeper
        self._reasons = reasons

    async def read(self, request: str, *, after: int) -> dict[str, Any]:
        """
        Return the lines of *request*, its id or how that begins, without the first *after*.

        ``next`` is the *after* of the next call. When ``state`` is ended, no more will come but of background tasks.

        Raises:
            NotFoundError: no such request is known.
        """
        name, state = await self._find(request)
        if state == "ended":
            await self._logs.settled(name)
        lines = await self._logs.lines(name, skip=after)
        return {
            "schema": SCHEMA,
            "request": name,
            "state": state,
            "next": after + len(lines),
            "lines": [asdict(line) for line in lines],
        }

    async def _find(self, request: str) -> tuple[RequestId, _State]:
        name, state, forgotten = RequestId(request), "", NotFoundError(f"no request {request}")
        try:
            story = self._reasons.explain(request)
            name, state = RequestId(story["request"]), story["state"]
        except NotFoundError as error:
            forgotten = error
            name = await self._keeper.store.beginning(request) or name
        if (live := self._keeper.find(name)) is not None:
            return name, "waiting" if live.job.state == "waiting" else "running"
        if state in ("waiting", "running"):
            return name, "waiting" if state == "waiting" else "running"
        if state or self._logs.has(name) or await self._keeper.store.find(name) is not None:
            return name, "ended"
        raise forgotten


def log_routes(reader: LogReader) -> list[Route]:
    """Return the path under which *reader* is asked."""

    async def logs(request: Request) -> Response:
        after = request.query_params.get("after", "0")
        if not (after.isascii() and after.isdecimal() and len(after) < 19):
            raise HTTPException(400, f"after={after[:40]!r}: write how many lines you have, from 0 up")
        try:
            return JSONResponse(await reader.read(request.path_params["request"], after=int(after)))
        except NotFoundError as error:
            raise HTTPException(404, error.detail) from None

    return [Route("/falctl/logs/{request:path}", logs)]
