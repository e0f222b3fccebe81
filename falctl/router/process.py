"""The router process: its parts put together, and what the supervisor tells it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import socket
from pathlib import Path
from typing import Any, Final

from falctl import wire
from falctl.board.board import Board
from falctl.config import Config
from falctl.core.admission import ByteBudget
from falctl.errors import ConfigError, StartError
from falctl.home import Home
from falctl.lifeline import Control
from falctl.router.body import Intake
from falctl.router.connection import Limits
from falctl.router.driver import Driver
from falctl.router.edge import Edge, Room, own_room
from falctl.router.files import FileStore
from falctl.router.fleet import FleetLinks
from falctl.router.guard import Guard
from falctl.router.jobs.courier import Courier
from falctl.router.jobs.keeper import Keeper
from falctl.router.jobs.records import StoreLimits
from falctl.router.jobs.store import JobStore
from falctl.router.ledger import Ledger
from falctl.router.listener import Listener
from falctl.router.log_routes import LogReader, log_routes
from falctl.router.memory import Memory
from falctl.router.proxy import Proxy, ProxyRules
from falctl.router.publish import Publisher
from falctl.router.queue_routes import QueueRoutes
from falctl.router.reasons import Reasons
from falctl.router.request_logs import RequestLogs
from falctl.router.routes import make_routes
from falctl.tasks import spawn

log = logging.getLogger(__name__)

_GARBAGE_OBJECTS: Final = 20_000
"""
New objects between two looks for cycles: Python's 700 is less than ten requests make.

Measured: about 10 % less CPU per request, 64 clients, 3 interleaved rounds, 2 shared cores, CPython 3.11.
"""
_OPEN_FILES_MAX: Final = 65536
_GREETINGS_WITHIN_S: Final = 1.0
"""A runner that is stopped does not answer; clients need not wait for it."""
_CLOSE_WITHIN_S: Final = 2.0


class Router:
    """All parts of one router. Made on its event loop; nothing runs before `run`."""

    def __init__(self, spec: wire.RouterSpec, board: Board, home: Home) -> None:
        config = Config.model_validate(spec.config)
        self._admin_token = spec.admin_token
        self._ledger = Ledger()
        self._driver = Driver(
            routing=config.routing, queue=config.queue, ledger=self._ledger, cwd=Path(spec.cwd)
        )
        self._fleet = FleetLinks(board, home, self._driver, self._ledger)
        self._limits = _limits(config)
        self._intake = Intake(
            ByteBudget(config.queue.max_bytes),
            config.server.max_body,
            config.server.body_timeout,
            self._driver.place_s,
        )
        self._files = FileStore(home.files, keep_s=config.files.keep)
        self._publisher = Publisher(
            board, self._driver.scheduler, intake=self._intake, ledger=self._ledger, epoch=spec.epoch
        )
        guard = Guard(config.server, admin_token=spec.admin_token)
        self._proxy = Proxy(
            self._driver, self._fleet, intake=self._intake, ledger=self._ledger, rules=_rules(config, guard)
        )
        # What cannot be opened is said before anything is served.
        self._keeper = Keeper(
            JobStore(home.jobs, _store_limits(config)),
            self._driver,
            Courier(self._fleet, timeout_s=config.runners.request_timeout),
        )
        self._logs = RequestLogs(self._keeper, self._fleet)
        self._queue = QueueRoutes(self._keeper, self._intake, logs=self._logs, rules=self._proxy.rules)
        self._memory = Memory(home.learnt, self._driver.scheduler.state)
        reasons = Reasons(self._driver.scheduler, epoch=spec.epoch)
        routes = make_routes(
            status=self._report,
            runners_ready=self._runners_ready,
            files=self._files,
            reasons=reasons,
            others=log_routes(LogReader(self._logs, self._keeper, reasons)),
        )
        ours = own_room(routes)
        rooms: dict[str, Room] = {
            "queue": self._queue.serve,
            **dict.fromkeys(("falctl", "health", "files"), ours),
        }
        self._edge = Edge(guard, self._proxy, rooms=rooms, ledger=self._ledger)
        self._listener = Listener(self._edge, self._limits)

    async def run(self, control: Control) -> None:
        """Serve until the supervisor says `wire.Stop`."""
        assert control.listen_fd is not None, "the supervisor hands the listening socket down"
        messages = control.messages(asyncio.get_running_loop())
        self._memory.recall()
        self._fleet.discover()
        self._publisher.publish()
        if jobs := self._keeper.recover():
            log.info("jobs.recovered count=%d", jobs)
        helpers = [
            spawn(self._publisher.publish_for_ever(), name="publish"),
            spawn(self._files.sweep_for_ever(), name="sweep"),
            spawn(self._memory.keep_for_ever(), name="memory"),
            spawn(self._keeper.keep_for_ever(), name="jobs"),
        ]
        await self._fleet.greeted(within_s=_GREETINGS_WITHIN_S)
        await self._listener.open(socket.socket(fileno=control.listen_fd))
        gc.set_threshold(_GARBAGE_OBJECTS, 20, 20)
        gc.collect()
        gc.freeze()  # what the imports left lives as long as we do: the collector need not walk it in mid-request
        control.send(wire.Ready())
        log.debug("router.ready")
        while not isinstance(message := await messages.get(), wire.Stop):
            self._obey(message, control)
        await self._listener.close(within_s=_CLOSE_WITHIN_S)
        for helper in helpers:
            helper.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_WITHIN_S):
                await self._logs.flush()
                await self._memory.keep()
        self._keeper.close()
        await self._fleet.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_WITHIN_S):
                await self._proxy.idle()  # who was cut off learns it now
        log.info("router.stopped")

    def _obey(self, message: wire.Message, control: Control) -> None:
        match message:
            case wire.RunnerChanged(runner, epoch, state, reason):
                self._fleet.learn(runner, epoch, state, reason)
            case wire.Reload(config):
                self._reload(Config.model_validate(config))
            case wire.Drain():
                self._ledger.note("draining")
                self._publisher.draining = True
                self._driver.drain()
                spawn(self._drained(control), name="drain")
            case _:
                log.warning("control.unexpected kind=%s", type(message).__name__)

    def _reload(self, config: Config) -> None:
        """Apply every key that needs no restart."""
        try:
            self._driver.configure(routing=config.routing, queue=config.queue)
        except ConfigError as error:  # it could be made when it was checked
            log.error("config.refused %s; the old policy stays", error)  # noqa: TRY400 - the user's mistake, not ours
        limits = _limits(config)
        self._limits.header_s = limits.header_s
        self._limits.send_s = limits.send_s
        self._limits.keep_alive_s = limits.keep_alive_s
        self._intake.budget.limit_bytes = config.queue.max_bytes
        self._intake.max_body_bytes = config.server.max_body
        self._intake.pause_s = config.server.body_timeout
        self._files.keep_s = config.files.keep
        self._edge.guard = Guard(config.server, admin_token=self._admin_token)
        self._proxy.rules = self._queue.rules = _rules(config, self._edge.guard)
        self._keeper.store.limits = _store_limits(config)
        logging.getLogger().setLevel(config.log.level.upper())
        self._ledger.note("configuration reloaded")
        log.info("router.reloaded")

    async def _drained(self, control: Control) -> None:
        await self._proxy.idle()
        await self._keeper.idle()
        control.send(wire.Drained())

    def _report(self) -> dict[str, Any]:
        return self._publisher.report(self._fleet)

    def _runners_ready(self) -> int:
        return self._fleet.up_count


def serve(spec: wire.RouterSpec, control: Control, home: Home) -> None:
    """Run the router of *spec* until it is told to stop. Blocks."""
    import uvloop

    _raise_open_files()
    board = Board.attach(control.board_fd)

    async def main() -> None:
        await Router(spec, board, home).run(control)

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    except (ConfigError, StartError) as error:
        control.send(wire.Failed(str(error), error.exit_code))
        raise SystemExit(error.exit_code) from None


def _limits(config: Config) -> Limits:
    server = config.server
    return Limits(header_s=server.header_timeout, send_s=server.send_timeout, keep_alive_s=server.keep_alive)


def _store_limits(config: Config) -> StoreLimits:
    return StoreLimits(keep_s=config.queue.keep, max_bytes=config.queue.max_disk)


def _rules(config: Config, guard: Guard) -> ProxyRules:
    hide = frozenset({b"authorization"}) if guard.asks_for_keys else frozenset[bytes]()
    return ProxyRules(hint_from=config.routing.hint_from, hide=hide)


def _raise_open_files() -> None:
    """Each running request takes two descriptors; the usual soft limit of 1024 is soon reached."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
