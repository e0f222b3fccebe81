"""From a class to a runner that serves it: cards proved, app set up, socket listened on."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from falctl.app import App
from falctl.board.board import Board
from falctl.config import Config
from falctl.core.types import RunnerId
from falctl.errors import StartError
from falctl.host.app_threads import AppThreads
from falctl.host.cancel import Canceller
from falctl.host.context import Context
from falctl.host.fal.health import HealthWatch
from falctl.host.gate import Gate
from falctl.host.guest_watch import GuestWatch
from falctl.host.hint_source import HintSource
from falctl.host.keeper import Keeper
from falctl.host.limits import Limits, within
from falctl.host.listener import Listener
from falctl.host.loads import Loads
from falctl.host.model_orders import ModelOrders
from falctl.host.own_paths import OwnPaths
from falctl.host.pins import prove_cards
from falctl.host.prints.capture import Capture
from falctl.host.report import Report
from falctl.host.serving import build_web, cancels_of, health_of, limits_of
from falctl.host.telling import from_the_app, said, user_line
from falctl.host.ticket import Slots, current_lifetime
from falctl.lifeline import Control
from falctl.toolkit.files import FileStore, use_store
from falctl.wire import HostSpec, Stage

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Served:
    """An app that is being served."""

    app: App
    slots: Slots
    threads: AppThreads
    report: Report
    listener: Listener
    limits: Limits
    health: HealthWatch | None


async def start(app_class: type[App], control: Control, config: Config, *, capture: Capture) -> Served:
    """
    Serve *app_class*; returns once it listens.

    Raises:
        StartError: the cards are not there, or the app's code raised; one line.
        ConfigError: an endpoint cannot be served.
        OSError: the socket cannot be bound.
    """
    spec = control.spec
    assert isinstance(spec, HostSpec), "started as a host"
    threads = AppThreads(app_class.max_multiplexing)
    slots = Slots(app_class.max_multiplexing)
    if spec.cards:
        control.send(Stage("importing torch"))
        await threads.run(lambda: prove_cards(spec.cards, driver=spec.driver))
    use_store(FileStore(Path(spec.files_dir), url=spec.files_url, lifetime=current_lifetime))
    threads.serve_streams()
    app = await threads.run(call_app, app_class, f"{app_class.__name__}()")
    hints = HintSource(app)
    board = Board.attach(control.board_fd)
    report = Report(board, spec, slots=slots, hints=hints)
    capture.attach(report.logbook, slots, control.native)
    app.runner = context = Context(spec, config, report=report, hints=hints, threads=threads)
    context.memory_channel = control.memory
    context.tending.start()
    web = build_web(app, threads=threads, hints=hints)
    limits = report.limits = limits_of(app, spec, config)
    control.send(limits.declared(config))
    control.send(Stage("setup"))
    await within(limits.startup_timeout_s, call_hook(app.setup, "setup()", threads=threads))
    report.changed(await threads.run(hints.ask) if hints.given else None)
    keeper = Keeper(slots=slots, hints=hints, report=report, threads=threads)
    ours = OwnPaths(
        keeper, Loads(report, threads), Canceller(web, cancels_of(app)), ModelOrders(report, threads)
    )
    listener = Listener(Gate(web, ours, keeper, limits.request_timeout_s), Path(spec.socket))
    await listener.listen()
    if spec.cards:
        runner, reserve_bytes = RunnerId(spec.runner), config.cache.reserve_vram
        GuestWatch(board, runner, caches=report.caches, reserve_bytes=reserve_bytes).start(threads)
    return Served(app, slots, threads, report, listener, limits, health_of(app))


async def call_hook(hook: Callable[[], Any], name: str, *, threads: AppThreads) -> None:
    """Call a hook of the app on its thread, what is async of it on the loop. Raises StartError if it raises."""
    result = await threads.run(call_app, hook, name)
    try:
        if inspect.isawaitable(result):
            await result
    except BaseException as error:
        raise _failed(error, name) from error


def call_app(call: Callable[[], Any], name: str) -> Any:
    """Return ``call()``. Raises StartError in one line, and logs the traceback, if it raises."""
    try:
        return call()
    except BaseException as error:
        raise _failed(error, name) from error


def _failed(error: BaseException, name: str) -> StartError:
    log.error("app.failed in=%s", name, exc_info=from_the_app(error))
    return StartError(f"{name} raised {said(error)}{user_line(error)}")
