"""
Build the web application of an app: one POST route per endpoint, `/health`, `/openapi.json` and `/docs`.

An async endpoint with a parameter of the type `starlette.websockets.WebSocket` is a websocket instead.
"""

from __future__ import annotations

import functools
import inspect
import sys
import typing
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, WebSocket
from fastapi.exceptions import RequestValidationError

from falctl.app import App, endpoints_of
from falctl.errors import ConfigError, RequestError
from falctl.host.app_threads import AppThreads
from falctl.host.failures import answer_error, answer_invalid
from falctl.host.hint_source import Asked, HintSource
from falctl.host.telling import said
from falctl.host.ticket import CURRENT


def build_routes(app: App, *, threads: AppThreads, hints: HintSource) -> FastAPI:
    """
    Return the web application that serves *app*.

    Raises:
        ConfigError: an endpoint's annotations cannot be served.
    """
    web = FastAPI(title=type(app).__name__, version="1", redoc_url=None, swagger_ui_oauth2_redirect_url=None)
    web.add_exception_handler(RequestError, answer_error)
    web.add_exception_handler(RequestValidationError, answer_invalid)
    web.add_exception_handler(Exception, answer_error)
    web.add_api_route("/health", _health, methods=["GET"])
    for endpoint in endpoints_of(type(app)):
        method = getattr(app, endpoint.method)
        try:
            route = endpoint_route(method, threads=threads, hints=hints)
            if _is_websocket(route):
                web.add_api_websocket_route(endpoint.path, route, name=endpoint.method)
            else:
                web.add_api_route(endpoint.path, route, methods=["POST"], name=endpoint.method)
        except Exception as error:
            # FastAPI, pydantic and the annotations themselves each raise their own kinds here.
            msg = f"endpoint {type(app).__name__}.{endpoint.method} cannot be served: {said(error)}"
            raise ConfigError(msg) from error
    return web


def endpoint_route(
    method: Callable[..., Any], *, threads: AppThreads, hints: HintSource
) -> Callable[..., Any]:
    """
    Return what FastAPI is to call for *method*, with its signature: on the loop if it is async, else on an app thread.

    Raises whatever reading its annotations raises.
    """
    if inspect.iscoroutinefunction(method):
        route = _on_the_loop(method)
    else:
        route = _on_a_thread(method, threads=threads, hints=hints)
    route.__signature__ = _signature(method)  # type: ignore[attr-defined]
    return route


def _is_websocket(route: Callable[..., Any]) -> bool:
    parameters = inspect.signature(route).parameters.values()
    found = any(isinstance(p.annotation, type) and issubclass(p.annotation, WebSocket) for p in parameters)
    if found and not inspect.iscoroutinefunction(inspect.unwrap(route)):
        msg = "it takes a WebSocket, so it must be async"
        raise TypeError(msg)
    return found


def _health() -> dict[str, str]:
    return {"status": "ok"}


def _on_the_loop(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    async def route(**inputs: Any) -> Any:
        try:
            return await method(**inputs)
        except SystemExit as error:
            msg = f"the app called sys.exit({error.code!r})"
            raise RuntimeError(msg) from error

    return route


def _on_a_thread(method: Callable[..., Any], *, threads: AppThreads, hints: HintSource) -> Callable[..., Any]:
    def call(inputs: dict[str, Any]) -> tuple[Any, Asked | None]:
        # One hop for both: the hints after the endpoint are asked for before its thread is left.
        return method(**inputs), hints.ask() if hints.given else None

    @functools.wraps(method)
    async def route(**inputs: Any) -> Any:
        ticket = CURRENT.get()
        assert ticket is not None, "an endpoint without a ticket"
        ticket.in_endpoint_thread = True
        try:
            result, ticket.asked = await threads.run(call, inputs)
        finally:
            ticket.in_endpoint_thread = False
        return await result if inspect.isawaitable(result) else result

    return route


def _signature(method: Callable[..., Any]) -> inspect.Signature:
    """Return the signature with its annotations resolved in the module where the method was written."""
    if inspect.isgeneratorfunction(method) or inspect.isasyncgenfunction(method):
        msg = "it is a generator; return a StreamingResponse instead"
        raise TypeError(msg)
    names = vars(sys.modules[method.__module__])
    types = typing.get_type_hints(method, names, include_extras=True)
    signature = inspect.signature(method)
    parameters = [
        p.replace(annotation=types.get(p.name, p.annotation)) for p in signature.parameters.values()
    ]
    result = types.get("return", signature.return_annotation)
    return signature.replace(parameters=parameters, return_annotation=result)
