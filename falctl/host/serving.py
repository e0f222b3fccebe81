"""What differs between an app of ours and a fal.App once either is served."""

from __future__ import annotations

from starlette.types import ASGIApp

from falctl.app import App
from falctl.host.app_threads import AppThreads
from falctl.host.fal.adapter import FalApp
from falctl.host.hint_source import HintSource
from falctl.host.limits import Limits
from falctl.host.routes import build_routes


def build_web(app: App, *, threads: AppThreads, hints: HintSource) -> ASGIApp:
    """Return the web application of *app*. Raises ConfigError: an endpoint cannot be served."""
    if isinstance(app, FalApp):
        return app.build_web(threads=threads, hints=hints)
    return build_routes(app, threads=threads, hints=hints)


def limits_of(app: App) -> Limits:
    """Return the limits that *app* sets itself."""
    if not isinstance(app, FalApp):
        return Limits()
    settings = app.settings
    return Limits(settings.startup_timeout_s, settings.request_timeout_s, settings.grace_s)
