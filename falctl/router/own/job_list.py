"""
What is asked for now and lately: queued jobs and direct requests in one list, and the way to cancel one of them.

`GET /falctl/jobs`, and `POST /falctl/jobs/{id}/cancel`, its id or how that begins, which needs the admin token as every write under ``/falctl``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Final, Literal, TypeAlias

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from falctl.clock import monotonic_s, wall_s
from falctl.core.fleet import Runner, Running
from falctl.core.jobs import ended_state
from falctl.core.types import RequestId
from falctl.errors import NotFoundError, StorageFullError
from falctl.router.dispatch.apps import Apps, LocalApp
from falctl.router.jobs.envelope import unpack
from falctl.router.jobs.keeper import Keeper
from falctl.router.jobs.records import SavedJob
from falctl.router.runners.fleet import FleetLinks

SCHEMA: Final = 1
LISTED: Final = 50
LISTED_MAX: Final = 1000

_Kind: TypeAlias = Literal["queued", "direct"]


@dataclass(frozen=True, slots=True)
class Row:
    """One request. None: that does not apply, or is not known."""

    request: str
    kind: _Kind
    app: str
    hint: str | None
    state: str
    """waiting, running, completed, failed or cancelled."""
    age_s: float
    """Since it was submitted, or came."""
    position: int | None = None
    """How many go before it."""
    runner: int | None = None
    attempts: int = 0
    status: int | None = None
    """Of the answer, once it has ended."""
    ended_ago_s: float | None = None


class JobList:
    """Reads what others own, and asks them to cancel."""

    def __init__(self, keeper: Keeper, apps: Apps, fleet: FleetLinks) -> None:
        self._keeper = keeper
        self._apps = apps
        self._fleet = fleet

    async def read(self, most: int) -> dict[str, Any]:
        """Return what runs, the first *most* of what waits, and the last *most* jobs that have ended."""
        running = [(app, *found) for app in self._apps for found in _running(app)]
        jobs = [await self._keeper.store.find(request) for _, _, request, _ in running]
        waiting, ended = await self._keeper.store.listed(most)
        rows = [
            _direct(app, request, slot, view) if job is None else self._queued(job, view)
            for (app, view, request, slot), job in zip(running, jobs, strict=True)
        ]
        known = {row.request for row in rows}
        rows += [self._queued(job) for job in waiting if job.request not in known]
        rows += list(islice(self._waiting(), most))
        rows += [_ended(job) for job in ended if job.request not in known]
        lanes = sum(len(self._keeper.backlog(alias)) for alias in self._keeper.aliases)
        return {
            "schema": SCHEMA,
            "waiting": lanes + sum(1 for _ in self._waiting()),
            "jobs": [asdict(row) for row in rows],
        }

    async def find(self, request: str) -> RequestId:
        """
        Return the id that is *request* or begins so.

        Raises:
            NotFoundError: no request is known by it, or several are.
        """
        found = {
            name for app in self._apps if (name := app.driver.scheduler.decisions.find(request)) is not None
        }
        if (job := await self._keeper.store.beginning(request)) is not None:
            found.add(job)
        if len(found) != 1:
            msg = f"no request {request[:64]!a}; `falctl jobs` lists them"
            raise NotFoundError(msg)
        return found.pop()

    async def cancel(self, request: RequestId) -> bool:
        """Have *request* ended, whatever it is; False: it is over."""
        if (live := self._keeper.find(request)) is not None:
            return await self._keeper.cancel(live)
        for app in self._apps:
            if app.driver.withdraw(request):
                return True
            for view, name, _ in _running(app):
                link = self._fleet.find(view.runner, view.epoch)
                if name == request and link is not None:
                    await link.cancel(request)
                    return True
        return False

    def _queued(self, job: SavedJob, view: Runner | None = None) -> Row:
        envelope, position = unpack(job.envelope), self._keeper.position(job.request)
        return Row(
            job.request,
            "queued",
            envelope.app,
            None if envelope.wanted is None else envelope.wanted.hint,
            "waiting" if view is None else "running",
            max(wall_s() - job.submitted_at, 0.0),
            position=position if view is None else None,
            runner=None if view is None else view.runner,
            attempts=job.attempts,
        )

    def _waiting(self) -> Iterator[Row]:
        """Iterate over the direct requests that wait."""
        for app in self._apps:
            for waiting in app.driver.scheduler.queue:
                if self._keeper.find(waiting.request) is None:
                    age_s = monotonic_s() - waiting.arrived_at
                    yield Row(waiting.request, "direct", app.alias, waiting.hint, "waiting", age_s)


def _running(app: LocalApp) -> Iterator[tuple[Runner, RequestId, Running]]:
    for view in app.driver.scheduler.fleet.runners.values():
        for request, slot in view.in_use.items():
            yield view, request, slot


def _direct(app: LocalApp, request: RequestId, slot: Running, view: Runner) -> Row:
    age_s = monotonic_s() - slot.started_at
    return Row(request, "direct", app.alias, slot.hint, "running", age_s, runner=view.runner)


def _ended(job: SavedJob) -> Row:
    assert job.ending is not None, "it has ended"
    envelope, ending = unpack(job.envelope), job.ending
    return Row(
        job.request,
        "queued",
        envelope.app,
        None if envelope.wanted is None else envelope.wanted.hint,
        ended_state(ending.outcome),
        max(wall_s() - job.submitted_at, 0.0),
        attempts=job.attempts,
        status=ending.outcome.status,
        ended_ago_s=max(wall_s() - ending.ended_at, 0.0),
    )


def job_routes(jobs: JobList) -> list[Route]:
    """Return the paths under which *jobs* is read, and asked to cancel."""

    async def listed(request: Request) -> Response:
        most = request.query_params.get("most", str(LISTED))
        if not (most.isascii() and most.isdecimal() and len(most) < 19):
            raise HTTPException(400, f"most={most[:40]!r}: write how many, from 0 up")
        table = await jobs.read(min(int(most), LISTED_MAX))
        return Response(
            json.dumps(table), media_type="application/json"
        )  # in ASCII, for half a surrogate pair

    async def cancel(request: Request) -> Response:
        try:
            name = await jobs.find(request.path_params["request"])
        except NotFoundError as error:
            raise HTTPException(404, error.detail) from None
        try:
            if not await jobs.cancel(name):
                raise HTTPException(400, f"request {name} has ended already")
        except StorageFullError as error:
            told = {"detail": error.detail, "error_type": error.error_type}
            return JSONResponse(told, error.status, {"x-fal-error-type": error.error_type})
        return JSONResponse({"status": "CANCELLATION_REQUESTED", "request": name}, 202)

    return [
        Route("/falctl/jobs", listed),
        Route("/falctl/jobs/{request}/cancel", cancel, methods=["POST"]),
    ]
