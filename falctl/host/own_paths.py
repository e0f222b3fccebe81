"""What a host answers the router under /falctl/: the event stream, cancellations, previews, load jobs, orders."""

from __future__ import annotations

import logging

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from falctl.host.cancel import Canceller
from falctl.host.failures import render
from falctl.host.keeper import Keeper
from falctl.host.load_order import read_order
from falctl.host.loads import Loads
from falctl.host.model_orders import ModelOrders, read_model_order
from falctl.host.ticket import Ticket
from falctl.tasks import spawn
from falctl.toolkit import BadRequestError, NotFoundError, RequestError
from falctl.wire import CANCEL_PATH, EVENTS_PATH, LOAD_PATH, MODELS_PATH, PREVIEW_PATH

log = logging.getLogger(__name__)


class OwnPaths:
    """An ASGI application."""

    def __init__(self, keeper: Keeper, loads: Loads, canceller: Canceller, models: ModelOrders) -> None:
        self._keeper = keeper
        self._loads = loads
        self._canceller = canceller
        self._models = models

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path, method = scope["path"], scope["method"]
        if path == EVENTS_PATH and method == "GET":
            report = self._keeper.report
            await report.events.serve([report.hello(), *report.logbook.recap()], receive, send)
            return
        try:
            response = await self._answer(path, method, Request(scope, receive))
        except RequestError as error:
            response = render(error)
        await response(scope, receive, send)

    async def _answer(self, path: str, method: str, request: Request) -> Response:
        if path.startswith(CANCEL_PATH) and method == "POST":
            return self._cancel(path.removeprefix(CANCEL_PATH))
        if path.startswith(PREVIEW_PATH) and method == "POST":
            self._find(path.removeprefix(PREVIEW_PATH)).previews = True
            return JSONResponse({"status": "PREVIEWING"}, 202)
        if path == LOAD_PATH and method == "POST":
            return self._load(await request.body())
        if path == MODELS_PATH and method == "POST":
            return JSONResponse(await self._models.obey(read_model_order(await request.body())))
        msg = f"Path {path} not found"
        raise NotFoundError(msg)

    def _find(self, request: str) -> Ticket:
        ticket = self._keeper.slots.find(request)
        if ticket is None:
            msg = f"Request {request} is not running here"
            raise NotFoundError(msg)
        return ticket

    def _cancel(self, request: str) -> Response:
        ticket = self._find(request)
        if not ticket.websocket:  # for those it is how most of them end
            log.info("request.cancelled request=%s", request)
        spawn(self._canceller.cancel(ticket), name=f"cancel-{request}")
        return JSONResponse({"status": "CANCELLATION_REQUESTED"}, 202)

    def _load(self, body: bytes) -> Response:
        order = read_order(body)
        if not self._loads.order(order):
            msg = "this app takes no load jobs: it has no model cache of ours, or more than one"
            raise BadRequestError(msg)
        return JSONResponse({"status": "LOADING"}, 202)
