"""
A `fal.App` as one of our apps: its routes behind our gate, its hooks called when ours are.

The SDK builds the web application and runs `setup` and `teardown` in its lifespan; we let it, but have its sync code
run on the runner's own threads, as many as slots: it would run `setup` on the event loop, endpoints on a pool of 40
threads whatever `max_multiplexing` says, and `provide_hints` on the loop after every answer.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, Final

from fastapi import FastAPI
from starlette.types import ASGIApp

from falctl.app import App
from falctl.errors import ConfigError, RequestError
from falctl.host.app_threads import AppThreads
from falctl.host.cancel import find_cancels
from falctl.host.failures import answer_error
from falctl.host.fal.answers import FalAnswers, answer_unexpected
from falctl.host.fal.health import HealthWatch, read_check
from falctl.host.fal.realtime import realtime_route
from falctl.host.fal.sdk import SDK
from falctl.host.fal.settings import Settings, read_settings
from falctl.host.hint_source import HintSource
from falctl.host.routes import endpoint_route
from falctl.host.telling import said

_HINTS_MIDDLEWARE: Final = "provide_hints_headers"


class FalApp(App):
    """Base of the classes that `adapt` makes."""

    fal_class: ClassVar[type[Any]]
    settings: ClassVar[Settings]

    def __init__(self) -> None:
        self.fal: Any = self.fal_class()
        _set_current(self.fal)
        self.health: HealthWatch | None = None
        self.cancels: dict[str, str] = {}
        """By the path of an endpoint, that of the one which cancels its requests."""
        self._lifespan: AbstractAsyncContextManager[Any] | None = None

    def build_web(self, *, threads: AppThreads, hints: HintSource) -> ASGIApp:
        """
        Return the web application of the app.

        Raises:
            ConfigError: an endpoint cannot be served.
        """
        app = self.fal
        found = app.collect_routes()
        posts = {signature.path for signature in found if not signature.is_websocket}
        self.cancels = find_cancels((signature.path for signature in found), posts=posts)
        routes = {
            signature: self._route(signature, method, threads=threads, hints=hints)
            for signature, method in found.items()
        }
        app.collect_routes = lambda: routes
        for hook in ("setup", "teardown"):
            setattr(app, hook, _on_threads(getattr(app, hook), threads))
        try:
            web: FastAPI = app._build_app()  # noqa: SLF001 - there is no other way in; the same from 1.60 on
        except Exception as error:
            # FastAPI, pydantic, the SDK and the annotations themselves each raise their own kinds here.
            msg = f"{self.fal_class.__name__} cannot be served: {said(error)}"
            raise ConfigError(msg) from error
        _drop_hints_middleware(web)
        web.add_exception_handler(RequestError, answer_error)
        web.add_exception_handler(Exception, answer_unexpected)
        self._lifespan = web.router.lifespan_context(web)
        answers = FalAnswers(web)
        check = read_check(self.fal_class.host_kwargs.get("health_check_config"))
        self.health = None if check is None else HealthWatch(check, answers)
        answers.wants_check = None if self.health is None else self.health.asked
        return answers

    def _route(
        self, signature: Any, method: Callable[..., Any], *, threads: AppThreads, hints: HintSource
    ) -> Callable[..., Any]:
        if signature.is_websocket:
            return realtime_route(method, signature, threads=threads)
        if signature.health_check or signature.path in self.cancels.values():
            return method  # neither may wait for a slot's thread
        if inspect.isgeneratorfunction(method) or inspect.isasyncgenfunction(method):
            return method  # FastAPI streams it
        return endpoint_route(method, threads=threads, hints=hints)

    async def setup(self) -> None:
        """Enter the SDK's lifespan, which calls the app's `setup`."""
        assert self._lifespan is not None, "built before it is set up"
        await self._lifespan.__aenter__()

    async def teardown(self) -> None:
        """Leave the SDK's lifespan, which calls the app's `teardown`."""
        assert self._lifespan is not None, "built before it is torn down"
        await self._lifespan.__aexit__(None, None, None)

    def handle_exit(self) -> None:
        """Call the app's `handle_exit`, which old SDKs do not know."""
        if (hook := getattr(self.fal, "handle_exit", None)) is not None:
            hook()


def is_fal_app(value: object) -> bool:
    """Return whether *value* is a subclass of `fal.App`; imports nothing."""
    base = _base()
    return base is not None and isinstance(value, type) and issubclass(value, base) and value is not base


def adapt(fal_class: type[Any], *, named: str) -> type[App]:
    """
    Return *fal_class*, for which `is_fal_app` holds, as an app of ours.

    Raises:
        ConfigError: one line that says what cannot be served.
    """
    base = _base()
    assert base is not None, "a fal.App without the SDK"
    settings = read_settings(fal_class, base, named=named)
    members: dict[str, Any] = {
        "fal_class": fal_class,
        "settings": settings,
        "max_multiplexing": settings.max_multiplexing,
    }
    if fal_class.provide_hints is not base.provide_hints:
        members["provide_hints"] = _provide_hints
    return type(fal_class.__name__, (FalApp,), members)


def paths_of(fal_class: type[Any]) -> list[tuple[str, str]]:
    """Return path and name of every endpoint of a fal.App."""
    members = inspect.getmembers(fal_class, inspect.isfunction)
    return [(f.route_signature.path, name) for name, f in members if hasattr(f, "route_signature")]


def _base() -> type[Any] | None:
    module: Any = sys.modules.get(f"{SDK}.app")
    return None if module is None else module.App


def _provide_hints(self: FalApp) -> Iterable[str]:
    hints: Iterable[str] = self.fal.provide_hints()
    return hints


def _set_current(app: Any) -> None:
    try:
        ref: Any = importlib.import_module(f"{SDK}.ref")
    except ModuleNotFoundError:
        return  # old SDKs have no such notion
    ref.set_current_app(app)


def _on_threads(hook: Callable[..., Any], threads: AppThreads) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(hook):
        return hook

    @functools.wraps(hook)
    async def call() -> Any:
        return await threads.run(hook)

    return call


def _drop_hints_middleware(web: FastAPI) -> None:
    """Take out the SDK's calls of `provide_hints`, on the loop and between two lines of an endpoint; ours do."""
    web.user_middleware[:] = [
        m
        for m in web.user_middleware
        if getattr(m.kwargs.get("dispatch"), "__name__", "") != _HINTS_MIDDLEWARE
    ]
