"""
The parts of a router, put together: who is made of what, and which of them hear of a new configuration.

`process` runs them. Nothing here runs before that.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp

from falctl import wire
from falctl.board.board import Board
from falctl.clock import wall_s
from falctl.config import Config
from falctl.core.admission import ByteBudget
from falctl.core.types import RunnerId
from falctl.errors import ConfigError
from falctl.home import Home
from falctl.router.dispatch.activity import Activity
from falctl.router.dispatch.apps import UNNAMED, Apps, LocalApp
from falctl.router.dispatch.driver import Driver
from falctl.router.dispatch.memory import Memory
from falctl.router.dispatch.wishes import ModelWishes
from falctl.router.edge.body import Intake
from falctl.router.edge.edge import Edge, Room, own_room
from falctl.router.edge.guard import Guard
from falctl.router.edge.limits import Limits
from falctl.router.edge.listener import Listener
from falctl.router.edge.tls import Tls
from falctl.router.fal import elsewhere
from falctl.router.fal.js_proxy import JsProxy
from falctl.router.fal.queue_routes import QueueRoutes
from falctl.router.fal.queue_status import QueueStatus
from falctl.router.fal.tokens import TokenRoom, Tokens, read_secret
from falctl.router.fal.uploads.passes import Passes
from falctl.router.fal.uploads.routes import Uploads
from falctl.router.fal.uploads.store import UploadStore
from falctl.router.fal.webhooks.deliverer import Deliverer
from falctl.router.fal.webhooks.keys import KEYS_ROOM, keys_room
from falctl.router.fal.webhooks.signing import open_signer
from falctl.router.jobs.courier import Courier
from falctl.router.jobs.keeper import Keeper
from falctl.router.jobs.records import StoreLimits
from falctl.router.jobs.store import JobStore
from falctl.router.jobs.watch import Watchers
from falctl.router.openai.models import Models
from falctl.router.openai.routes import OpenAiApi
from falctl.router.own.files import FileStore
from falctl.router.own.job_list import JobList, job_routes
from falctl.router.own.ledger import Ledger
from falctl.router.own.log_routes import LogReader, log_routes
from falctl.router.own.model_loads import ModelLoads
from falctl.router.own.model_routes import model_routes
from falctl.router.own.publish import Publisher
from falctl.router.own.reasons import Reasons
from falctl.router.own.request_events import Previews, RequestEvents
from falctl.router.own.request_logs import RequestLogs
from falctl.router.own.request_states import RequestStates
from falctl.router.own.routes import make_routes
from falctl.router.own.standing import StandingModels
from falctl.router.own.steps import Steps
from falctl.router.passing.direct import Direct
from falctl.router.passing.http_talk import HttpTalk
from falctl.router.passing.names import Names
from falctl.router.passing.proxy import Proxy, ProxyRules
from falctl.router.passing.websockets import WebSockets
from falctl.router.runners.fleet import FleetLinks
from falctl.tasks import spawn

log = logging.getLogger(__name__)


class Parts:
    """All parts of one router. Made on its event loop."""

    def __init__(self, spec: wire.RouterSpec, board: Board, home: Home) -> None:
        config = Config.model_validate(spec.config)
        self._home = home
        self._server = config.server
        self._tls: Tls | None = None
        self._admin_token = spec.admin_token
        self.ledger = Ledger()
        self.apps = _make_apps(spec, config, self.ledger, runners=board.runners)
        self.fleet = FleetLinks(board, home, self.apps, self.ledger)
        self._wishes = ModelWishes(self.apps)
        self._standing = StandingModels(self.apps, self.fleet, self._wishes, ledger=self.ledger)
        self._standing.preload(config)
        self._limits = _limits(config)
        self._intake = Intake(
            ByteBudget(config.queue.max_bytes),
            config.server.max_body,
            config.server.body_timeout,
            self.apps.place_s,
        )
        self.files = FileStore(home.files, keep_s=config.files.keep)
        self.publisher = Publisher(
            board, self.apps, intake=self._intake, ledger=self.ledger, epoch=spec.epoch
        )
        self._tokens = Tokens(read_secret(home.token_secret))
        self.activity = Activity()
        self.uploads = _uploads(spec, home, self._intake, max_bytes=config.files.max_upload)
        guard = self._guard(config)
        self._proxy = Proxy(
            self.fleet,
            intake=self._intake,
            ledger=self.ledger,
            rules=_rules(config, guard),
            activity=self.activity,
        )
        websockets = WebSockets(self.fleet, self._proxy, ledger=self.ledger, activity=self.activity)
        # What cannot be opened is said before anything is served.
        store, signer = JobStore(home.jobs, _store_limits(config)), open_signer(home.webhook_key)
        self.keeper = Keeper(
            store,
            self.apps,
            Courier(self.fleet, self.apps, self.ledger, timeout_s=config.runners.request_timeout),
        )
        direct = Direct(self.apps, self._proxy, websockets, Names(self.apps, store))
        self.webhooks = Deliverer(store, signer, self.ledger)
        self.watchers = Watchers(self.keeper.position)
        self.keeper.observers += [self.webhooks.hear, self.watchers.hear]
        self.logs = RequestLogs(self.keeper, self.fleet, news=self.watchers.printed)
        status = QueueStatus(self.keeper, self.watchers, self.logs)
        self._queue = QueueRoutes(self.apps, self.keeper, status, self._intake, rules=self._proxy.rules)
        self.memory = Memory(home.learnt, {app.alias: app.driver.scheduler.state for app in self.apps})
        models = Models(self.apps, config, since=int(wall_s()))
        rooms = self._rooms(direct, OpenAiApi(self._proxy, models, self._intake, self.files), spec.epoch)
        rooms["falctl/requests"] = self._request_events().serve
        rooms[KEYS_ROOM] = keys_room(signer)
        self._edge = Edge(guard, rooms=rooms, bare=direct.serve_bare, ledger=self.ledger)
        self._edge.rooms["api/fal"] = JsProxy(self._edge.route).serve
        self.listener = Listener(self._edge, self._limits)

    def _rooms(self, direct: Direct, openai: OpenAiApi, epoch: int) -> dict[str, Room]:
        """Return who answers under which prefix."""
        ours = own_room(self._own_routes(Reasons(self.apps, epoch=epoch)))
        return {
            "run": direct.serve_run,
            "ws": HttpTalk(self.apps, self._proxy).serve,
            "queue": self._queue.serve,
            "fal/rest/tokens": TokenRoom(self._tokens, self._intake).serve,
            "v1": openai.serve,
            "fal": elsewhere.refuse,
            **dict.fromkeys(("fal/rest/storage", "fal/cdn"), self.uploads.serve),
            **dict.fromkeys(("falctl", "health"), ours),
            "files": self.uploads.beside(ours),
        }

    def _request_events(self) -> RequestEvents:
        states = RequestStates(self.apps, self.keeper, self.fleet, self.ledger)
        self.request_watchers = Watchers(states.live, always=True)
        steps = Steps(self.fleet, news=self.request_watchers.wake)
        return RequestEvents(states, steps, self.request_watchers, Previews(self.apps, self.fleet))

    def _own_routes(self, reasons: Reasons) -> ASGIApp:
        return make_routes(
            status=self._report,
            health=self._health,
            files=self.files,
            reasons=reasons,
            others=[
                *log_routes(LogReader(self.logs, self.keeper, reasons)),
                *job_routes(JobList(self.keeper, self.apps, self.fleet)),
                *model_routes(self._standing.orders, ModelLoads(self._standing.orders, self._wishes)),
            ],
        )

    def end_streams(self) -> None:
        """End all streams of events about requests, now and in future."""
        self.watchers.close()
        self.request_watchers.close()

    def tls(self) -> Tls:
        """Return what the second port needs. Blocks. Raises StartError."""
        self._tls = Tls(self._home, self._server)
        return self._tls

    def reload(self, config: Config) -> None:
        """Apply every key that needs no restart."""
        try:
            self.apps.configure(routing=config.routing, queue=config.queue)
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
        self.files.keep_s = config.files.keep
        self.uploads.store.max_bytes = config.files.max_upload
        if self._tls is not None:
            spawn(self._tls.rename(config.server), name="tls.rename")
        self._edge.guard = self._guard(config)
        self._proxy.rules = self._queue.rules = _rules(config, self._edge.guard)
        self.keeper.store.limits = _store_limits(config)
        self._standing.reload(config)
        logging.getLogger().setLevel(config.log.level.upper())
        self.ledger.note("configuration reloaded")
        log.info("router.reloaded")

    def _guard(self, config: Config) -> Guard:
        return Guard(
            config.server, admin_token=self._admin_token, tokens=self._tokens, passes=self.uploads.admits
        )

    def _report(self) -> dict[str, Any]:
        return self.publisher.report(self.fleet) | {
            "watching": len(self.watchers) + len(self.request_watchers)
        }

    def _health(self) -> dict[str, int]:
        return {app.alias: self.fleet.up_count(app) for app in self.apps}


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
