"""What the router answers itself: health, its own status and version, its reasons, and stored files."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from falctl.errors import NotFoundError
from falctl.router.own.files import FileStore, StoredFile
from falctl.router.own.reasons import Reasons, reason_routes
from falctl.version import __version__

_CHUNK_BYTES: Final = 256 << 10
_FILE_HEADERS: Final = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "sandbox",
    "cache-control": "private, max-age=3600",
    "cross-origin-resource-policy": "cross-origin",
}

Report: TypeAlias = Callable[[], dict[str, Any]]


def make_routes(
    *,
    status: Report,
    health: Callable[[], dict[str, int]],
    files: FileStore,
    reasons: Reasons,
    others: Sequence[BaseRoute] = (),
) -> Starlette:
    """
    Return the ASGI app for the paths that are ours.

    *status* makes the JSON of ``GET /falctl/status``; *health* says how many runners of each app, by alias, are ready.
    """

    async def show_health(_: Request) -> Response:
        return _healthy(health())

    async def show_status(_: Request) -> Response:
        return JSONResponse(status())

    async def version(_: Request) -> Response:
        return JSONResponse({"version": __version__})

    async def stored_file(request: Request) -> Response:
        found = files.open(request.path_params["name"])
        if found is None:
            raise HTTPException(404, "no such file; files are deleted after files.keep")
        headers = _FILE_HEADERS | {
            "content-type": found.content_type,
            "content-length": str(found.size_bytes),
        }
        if request.method == "HEAD":
            os.close(found.fd)
            return Response(headers=headers)
        return _FileResponse(found, headers)

    return Starlette(
        routes=[
            Route("/health", show_health),
            Route("/falctl/status", show_status),
            Route("/falctl/version", version),
            *reason_routes(reasons),
            *others,
            Route("/files/{name}", stored_file),
        ],
        exception_handlers={HTTPException: _explain},
    )


def _healthy(ready: dict[str, int]) -> Response:
    """Return what monitors read: 503 once nobody can be served."""
    count = sum(ready.values())
    without = [alias for alias, number in ready.items() if not number and alias]
    word = f"no runner of {', '.join(without)} is ready" if count and without else "ok"
    told: dict[str, Any] = {"status": word if count else "no runner is ready", "runners_ready": count}
    if len(ready) > 1:
        told["apps"] = ready
    return JSONResponse(told, status_code=200 if count else 503)


class _FileResponse(StreamingResponse):
    """Closes its file in any case: a generator that was never begun, since its client had gone, would leave it open."""

    def __init__(self, stored: StoredFile, headers: Mapping[str, str]) -> None:
        super().__init__(_chunks(stored), headers=headers)
        self._stored = stored

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            os.close(self._stored.fd)


async def _chunks(stored: StoredFile) -> AsyncIterator[bytes]:
    left = stored.size_bytes
    # A read that is under way is waited for also when its client leaves: its descriptor would be somebody else's next.
    while left and (chunk := await run_in_threadpool(os.read, stored.fd, min(left, _CHUNK_BYTES))):
        left -= len(chunk)
        yield chunk


async def _explain(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    unknown = error.status_code == 404 and error.detail == HTTPException(404).detail
    detail = f"nothing at {request.url.path}" if unknown else error.detail
    kind = NotFoundError.error_type if error.status_code == 404 else "bad_request"
    return JSONResponse(
        {"detail": detail, "error_type": kind},
        status_code=error.status_code,
        headers={**(error.headers or {}), "x-fal-error-type": kind},
    )
