"""What differs between an app of ours and a fal.App once either is served."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from starlette.types import ASGIApp

from falctl.app import App
from falctl.host.app_threads import AppThreads
from falctl.host.fal.adapter import FalApp
from falctl.host.fal.health import HealthWatch
from falctl.host.fal.settings import check_cards, notes
from falctl.host.hint_source import HintSource
from falctl.host.limits import Limits
from falctl.host.routes import build_routes
from falctl.wire import HostSpec

log = logging.getLogger(__name__)


def build_web(app: App, *, threads: AppThreads, hints: HintSource) -> ASGIApp:
    """Return the web application of *app*. Raises ConfigError: an endpoint cannot be served."""
    if isinstance(app, FalApp):
        return app.build_web(threads=threads, hints=hints)
    return build_routes(app, threads=threads, hints=hints)


def check_app(app_class: type[App], spec: HostSpec) -> None:
    """
    Say what of a fal.App's settings does not count here; the first runner says it for all.

    Raises:
        ConfigError: it wants more cards than this runner has.
    """
    if not issubclass(app_class, FalApp):
        return
    check_cards(app_class.settings, cards=len(spec.cards), named=spec.app)
    if (spec.runner, spec.epoch) == (0, 1):
        for note in notes(app_class.settings, os.environ):
            log.warning("fal.app %s", note)


def limits_of(app: App, spec: HostSpec) -> Limits:
    """Return the limits that *app* sets itself."""
    if not isinstance(app, FalApp):
        return Limits()
    settings = app.settings
    spared = spec.runner < settings.min_concurrency
    return Limits(
        startup_timeout_s=settings.startup_timeout_s,
        request_timeout_s=settings.request_timeout_s,
        grace_s=settings.grace_s,
        keep_alive_s=None if spared else settings.keep_alive_s,
    )


def health_of(app: App) -> HealthWatch | None:
    """Return the watch of *app*'s own health check; call after `build_web`."""
    return app.health if isinstance(app, FalApp) else None


def cancels_of(app: App) -> Mapping[str, str]:
    """Return the endpoints of *app* by which its requests are cancelled, as `find_cancels`; call after `build_web`."""
    return app.cancels if isinstance(app, FalApp) else {}
