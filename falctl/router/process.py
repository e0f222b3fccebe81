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

from starlette.types import ASGIApp

from falctl import wire
from falctl.board.board import Board
from falctl.clock import wall_clock
from falctl.config import Config
from falctl.core.admission import ByteBudget
from falctl.core.types import RunnerId
from falctl.errors import ConfigError, StartError
from falctl.home import Home
from falctl.lifeline import Control
from falctl.router import elsewhere
from falctl.router.activity import Activity
from falctl.router.apps import UNNAMED, Apps, LocalApp
from falctl.router.body import Intake
from falctl.router.direct import Direct
from falctl.router.driver import Driver
from falctl.router.edge import Edge, Room, own_room
from falctl.router.files import FileStore
from falctl.router.fleet import FleetLinks
from falctl.router.guard import Guard
from falctl.router.http_talk import HttpTalk
from falctl.router.job_list import JobList, job_routes
from falctl.router.jobs.courier import Courier
from falctl.router.jobs.keeper import Keeper
from falctl.router.jobs.records import StoreLimits
from falctl.router.jobs.store import JobStore
from falctl.router.jobs.watch import Watchers
from falctl.router.js_proxy import JsProxy
from falctl.router.ledger import Ledger
from falctl.router.limits import Limits
from falctl.router.listener import Listener
from falctl.router.log_routes import LogReader, log_routes
from falctl.router.memory import Memory
from falctl.router.openai.models import Models
from falctl.router.openai.routes import OpenAiApi
from falctl.router.proxy import Proxy, ProxyRules
from falctl.router.publish import Publisher
from falctl.router.queue_routes import QueueRoutes
from falctl.router.queue_status import QueueStatus
from falctl.router.reasons import Reasons
from falctl.router.request_logs import RequestLogs
from falctl.router.routes import make_routes
from falctl.router.tls import Tls
from falctl.router.tokens import TokenRoom, Tokens, read_secret
from falctl.router.uploads.passes import Passes
from falctl.router.uploads.routes import Uploads
from falctl.router.uploads.store import UploadStore
from falctl.router.webhooks.deliverer import Deliverer
from falctl.router.webhooks.keys import KEYS_ROOM, keys_room
from falctl.router.webhooks.signing import open_signer
from falctl.router.websockets import WebSockets
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
        self._home = home
        self._server = config.server
        self._tls: Tls | None = None
        self._admin_token = spec.admin_token
        self._ledger = Ledger()
        self._apps = _make_apps(spec, config, self._ledger, runners=board.runners)
        self._fleet = FleetLinks(board, home, self._apps, self._ledger)
        self._limits = _limits(config)
        self._intake = Intake(
            ByteBudget(config.queue.max_bytes),
            config.server.max_body,
            config.server.body_timeout,
            self._apps.place_s,
        )
        self._files = FileStore(home.files, keep_s=config.files.keep)
        self._publisher = Publisher(
            board, self._apps, intake=self._intake, ledger=self._ledger, epoch=spec.epoch
        )
        self._tokens = Tokens(read_secret(home.token_secret))
        self._activity = Activity()
        self._uploads = _uploads(spec, home, self._intake, max_bytes=config.files.max_upload)
        guard = self._guard(config)
        self._proxy = Proxy(
            self._fleet,
            intake=self._intake,
            ledger=self._ledger,
            rules=_rules(config, guard),
            activity=self._activity,
        )
        websockets = WebSockets(self._fleet, self._proxy, ledger=self._ledger, activity=self._activity)
        direct = Direct(self._apps, self._proxy, websockets)
        # What cannot be opened is said before anything is served.
        store, signer = JobStore(home.jobs, _store_limits(config)), open_signer(home.webhook_key)
        self._keeper = Keeper(
            store, self._apps, Courier(self._fleet, self._apps, timeout_s=config.runners.request_timeout)
        )
        self._webhooks = Deliverer(store, signer, self._ledger)
        self._watchers = Watchers(self._keeper.position)
        self._keeper.observers += [self._webhooks.hear, self._watchers.hear]
        self._logs = RequestLogs(self._keeper, self._fleet, news=self._watchers.printed)
        status = QueueStatus(self._keeper, self._watchers, self._logs)
        self._queue = QueueRoutes(self._apps, self._keeper, status, self._intake, rules=self._proxy.rules)
        self._memory = Memory(home.learnt, {app.alias: app.driver.scheduler.state for app in self._apps})
        models = Models(self._apps, config, since=int(wall_clock().timestamp()))
        rooms = self._rooms(direct, OpenAiApi(self._proxy, models, self._intake, self._files), spec.epoch)
        rooms[KEYS_ROOM] = keys_room(signer)
        self._edge = Edge(guard, rooms=rooms, bare=direct.serve_bare, ledger=self._ledger)
        self._edge.rooms["api/fal"] = JsProxy(self._edge.route).serve
        self._listener = Listener(self._edge, self._limits)

    def _rooms(self, direct: Direct, openai: OpenAiApi, epoch: int) -> dict[str, Room]:
        """Return who answers under which prefix."""
        ours = own_room(self._own_routes(Reasons(self._apps, epoch=epoch)))
        return {
            "run": direct.serve_run,
            "ws": HttpTalk(self._apps, self._proxy).serve,
            "queue": self._queue.serve,
            "fal/rest/tokens": TokenRoom(self._tokens, self._intake).serve,
            "v1": openai.serve,
            "fal": elsewhere.refuse,
            **dict.fromkeys(("fal/rest/storage", "fal/cdn"), self._uploads.serve),
            **dict.fromkeys(("falctl", "health"), ours),
            "files": self._uploads.beside(ours),
        }

    def _own_routes(self, reasons: Reasons) -> ASGIApp:
        return make_routes(
            status=self._report,
            health=self._health,
            files=self._files,
            reasons=reasons,
            others=[
                *log_routes(LogReader(self._logs, self._keeper, reasons)),
                *job_routes(JobList(self._keeper, self._apps, self._fleet)),
            ],
        )

    async def run(self, control: Control) -> None:
        """Serve until the supervisor says `wire.Stop`."""
        assert control.listen_fd is not None, "the supervisor hands the listening socket down"
        messages = control.messages(asyncio.get_running_loop())
        self._memory.recall()
        self._uploads.store.begin()
        self._fleet.discover()
        self._publisher.publish()
        if jobs := self._keeper.recover():
            log.info("jobs.recovered count=%d", jobs)
        helpers = [
            spawn(self._publisher.publish_for_ever(), name="publish"),
            spawn(self._files.sweep_for_ever(), name="sweep"),
            spawn(self._memory.keep_for_ever(), name="memory"),
            spawn(self._keeper.keep_for_ever(), name="jobs"),
            spawn(self._webhooks.deliver_for_ever(), name="webhooks"),
            spawn(self._uploads.sweep_for_ever(), name="uploads"),
        ]
        await self._fleet.greeted(within_s=_GREETINGS_WITHIN_S)
        await self._listener.open(socket.socket(fileno=control.listen_fd))
        if control.tls_fd is not None:
            self._tls = Tls(self._home, self._server)
            helpers.append(spawn(self._tls.renew_for_ever(), name="tls"))
            await self._listener.open(socket.socket(fileno=control.tls_fd), self._tls.context)
        gc.set_threshold(_GARBAGE_OBJECTS, 20, 20)
        gc.collect()
        gc.freeze()  # what the imports left lives as long as we do: the collector need not walk it in mid-request
        control.send(wire.Ready())
        log.debug("router.ready")
        while not isinstance(message := await messages.get(), wire.Stop):
            self._obey(message, control)
        self._watchers.close()
        await self._listener.close(within_s=_CLOSE_WITHIN_S)
        for helper in helpers:
            helper.cancel()
        await asyncio.gather(*helpers, return_exceptions=True)  # none may write into a store that is closed
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_WITHIN_S):
                await self._logs.flush()
                await self._memory.keep()
        self._keeper.close()
        await self._fleet.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_WITHIN_S):
                await self._activity.idle()  # who was cut off learns it now
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
                self._apps.drain()
                spawn(self._drained(control), name="drain")
            case _:
                log.warning("control.unexpected kind=%s", type(message).__name__)

    def _reload(self, config: Config) -> None:
        """Apply every key that needs no restart."""
        try:
            self._apps.configure(routing=config.routing, queue=config.queue)
        except ConfigError as error:  # it could be made when it was checked
            log.error("config.refused %s; the old policy stays", error)  # noqa: TRY400 - the user's mistake, not ours
        limits = _limits(config)
        self._limits.header_s = limits.header_s
        self._limits.send_s = limits.send_s
        self._limits.keep_alive_s = limits.keep_alive_s
        self._limits.message_bytes = limits.message_bytes
        self._intake.budget.limit_bytes = config.queue.max_bytes
        self._intake.max_body_bytes = config.server.max_body
        self._intake.pause_s = config.server.body_timeout
        self._files.keep_s = config.files.keep
        self._uploads.store.max_bytes = config.files.max_upload
        if self._tls is not None:
            spawn(self._tls.rename(config.server), name="tls.rename")
        self._edge.guard = self._guard(config)
        self._proxy.rules = self._queue.rules = _rules(config, self._edge.guard)
        self._keeper.store.limits = _store_limits(config)
        logging.getLogger().setLevel(config.log.level.upper())
        self._ledger.note("configuration reloaded")
        log.info("router.reloaded")

    async def _drained(self, control: Control) -> None:
        await self._activity.idle()
        await self._keeper.idle()
        self._watchers.close()  # after what has ended has been told
        await self._webhooks.settle(within_s=_CLOSE_WITHIN_S)  # the next router may be days away
        control.send(wire.Drained())

    def _guard(self, config: Config) -> Guard:
        return Guard(
            config.server, admin_token=self._admin_token, tokens=self._tokens, passes=self._uploads.admits
        )

    def _report(self) -> dict[str, Any]:
        return self._publisher.report(self._fleet) | {"watching": len(self._watchers)}

    def _health(self) -> dict[str, int]:
        return {app.alias: self._fleet.up_count(app) for app in self._apps}


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


def _make_apps(spec: wire.RouterSpec, config: Config, ledger: Ledger, *, runners: int) -> Apps:
    named = spec.apps or {UNNAMED: list(range(runners))}
    return Apps(
        LocalApp(
            alias,
            frozenset(map(RunnerId, numbers)),
            Driver(routing=config.routing, queue=config.queue, ledger=ledger, cwd=Path(spec.cwd)),
        )
        for alias, numbers in named.items()
    )


def _uploads(spec: wire.RouterSpec, home: Home, intake: Intake, *, max_bytes: int) -> Uploads:
    return Uploads(
        UploadStore(home.uploads, home.files, max_bytes=max_bytes),
        Passes(spec.admin_token),
        intake,
        files_url=spec.files_url or f"{spec.url}/files",
    )


def _limits(config: Config) -> Limits:
    server = config.server
    return Limits(
        header_s=server.header_timeout,
        send_s=server.send_timeout,
        keep_alive_s=server.keep_alive,
        message_bytes=server.max_body,
    )


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
