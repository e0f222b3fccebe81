"""
The paths under which models are loaded, unloaded, pinned and unpinned; writes, so that they need the admin token.

``POST /falctl/load?model=NAME[&runner=N][&tier=vram|ram][&app=ALIAS]`` answers a line of JSON for each thing that happens;
``unload`` (``tier=ram``: it stays in host memory; disk, the default: it leaves that, too), ``pin`` and ``unpin`` answer when
it is done.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from falctl.errors import RequestError
from falctl.router.own.model_loads import ModelLoads
from falctl.router.own.model_orders import Answer, Asked, Deed, Facts, ModelOrders
from falctl.wire import H_ERROR_TYPE

_KEYS: Final = frozenset({"model", "runner", "tier", "app"})
_LOAD_TIERS: Final = ("vram", "ram")
_UNLOAD_TIERS: Final = ("ram", "disk")


def model_routes(orders: ModelOrders, loads: ModelLoads) -> list[Route]:
    """Return the paths."""

    async def load(request: Request) -> Response:
        asked = _asked(request, tiers=_LOAD_TIERS)
        try:
            told = loads.load(asked)
        except RequestError as error:
            return _refuse(error)
        return StreamingResponse(_lines(told), media_type="application/x-ndjson")

    def route(deed: Deed, tiers: Collection[str] = ()) -> Route:
        async def do(request: Request) -> Response:
            asked = _asked(request, tiers=tiers)
            try:
                answers = await orders.do(deed, asked)
            except RequestError as error:
                return _refuse(error)
            return _answer(asked.model, answers)

        return Route(f"/falctl/{deed}", do, methods=["POST"])

    return [
        Route("/falctl/load", load, methods=["POST"]),
        route("unload", _UNLOAD_TIERS),
        route("pin"),
        route("unpin"),
    ]


def _asked(request: Request, *, tiers: Collection[str]) -> Asked:
    """Return what *request* asks for. Raises HTTPException: that cannot be understood."""
    given = request.query_params
    if unknown := sorted(given.keys() - _KEYS):
        raise HTTPException(
            400, f"{unknown[0][:40]!r} is not known here; there are {', '.join(sorted(_KEYS))}"
        )
    model, runner, tier = given.get("model", ""), given.get("runner"), given.get("tier")
    if not model:
        raise HTTPException(400, f"name a model: {request.url.path}?model=NAME")
    if runner is not None and not (runner.isascii() and runner.isdecimal() and len(runner) < 10):
        raise HTTPException(400, f"runner={runner[:40]!r}: write its number, as `falctl status` shows it")
    if tier is not None and tier not in tiers:
        known = f"write {' or '.join(tiers)}" if tiers else "that is for load and unload"
        raise HTTPException(400, f"tier={tier[:40]!r}: {known}")
    return Asked(model, None if runner is None else int(runner), given.get("app"), tier)


async def _lines(told: AsyncIterator[Facts]) -> AsyncIterator[bytes]:
    async for facts in told:
        yield json.dumps(facts).encode() + b"\n"  # in ASCII, for half a surrogate pair


def _answer(model: str, answers: list[Answer]) -> Response:
    failed = [answer for answer in answers if answer.failed]
    if not failed:
        done = [{"runner": answer.runner, **answer.told} for answer in answers]
        told = json.dumps({"model": model, "runners": done})
        return Response(told, media_type="application/json")
    kind = str(failed[0].told.get("error_type", RequestError.error_type))
    detail = "; ".join(answer.detail for answer in failed)
    return _error(detail, kind, failed[0].status)


def _refuse(error: RequestError) -> Response:
    return _error(error.detail, error.error_type, error.status)


def _error(detail: str, kind: str, status: int) -> Response:
    return JSONResponse({"detail": detail, "error_type": kind}, status, {H_ERROR_TYPE: kind})
