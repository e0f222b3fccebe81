"""What differs between an app of ours and a fal.App once either is served."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from starlette.types import ASGIApp

from falctl.app import App
from falctl.config import Config
from falctl.host.app_threads import AppThreads
from falctl.host.fal.adapter import FalApp
from falctl.host.fal.health import HealthWatch
from falctl.host.fal.notes import Place, notes, section_of
from falctl.host.fal.settings import check_cards
from falctl.host.fal.storage import make_data_folders
from falctl.host.hint_source import HintSource
from falctl.host.limits import Limits, cuts
from falctl.host.routes import build_routes
from falctl.wire import HostSpec

log = logging.getLogger(__name__)


def build_web(app: App, *, threads: AppThreads, hints: HintSource) -> ASGIApp:
    """Return the web application of *app*. Raises ConfigError: an endpoint cannot be served."""
    if isinstance(app, FalApp):
        return app.build_web(threads=threads, hints=hints)
    return build_routes(app, threads=threads, hints=hints)


def check_app(app_class: type[App], spec: HostSpec, config: Config) -> None:
    """
    Say what of a fal.App's settings does not count here; the first runner says it for all.

    Raises:
        ConfigError: it wants more cards than this runner has.
    """
    if not issubclass(app_class, FalApp):
        return
    settings = app_class.settings
    check_cards(settings, cards=len(spec.cards), named=spec.app, section=section_of(spec))
    make_data_folders(settings.data_mounts, Path(spec.data_dir))
    if (spec.place, spec.epoch) == (0, 1):
        for note in notes(settings, Place(spec, config, os.environ)):
            log.warning("fal.app %s", note)


def limits_of(app: App, spec: HostSpec, config: Config) -> Limits:
    """Return the limits that *app* sets itself, as far as nobody has set other ones."""
    if not isinstance(app, FalApp):
        return Limits()
    settings = app.settings
    spared = spec.place < settings.min_concurrency
    startup_s, request_s = settings.startup_timeout_s, settings.request_timeout_s
    return Limits(
        startup_timeout_s=cuts(startup_s, "setup_timeout", spec, config) or startup_s,
        request_timeout_s=cuts(request_s, "request_timeout", spec, config) or request_s,
        grace_s=settings.grace_s,
        keep_alive_s=None if spared else settings.keep_alive_s,
        app_name=settings.name,
        start_timeout_s=settings.start_timeout_s,
        retries=settings.retries,
        retry_skips=settings.retry_skips,
    )


def health_of(app: App) -> HealthWatch | None:
    """Return the watch of *app*'s own health check; call after `build_web`."""
    return app.health if isinstance(app, FalApp) else None


def cancels_of(app: App) -> Mapping[str, str]:
    """Return the endpoints of *app* by which its requests are cancelled, as `find_cancels`; call after `build_web`."""
    return app.cancels if isinstance(app, FalApp) else {}
