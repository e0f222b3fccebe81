"""The links to all runners: opened and closed by the supervisor's word, translated for the schedulers of their apps."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from weakref import WeakSet

from falctl import wire
from falctl.board.board import Board
from falctl.board.index import HintIndex
from falctl.board.rows import RunnerRow
from falctl.core.events import Load, RunnerDown, RunnerDrains
from falctl.core.types import Epoch, RequestId, RunnerId
from falctl.home import Home
from falctl.router.dispatch.apps import Apps, LocalApp, settings_of
from falctl.router.dispatch.driver import Driver
from falctl.router.own.ledger import Ledger
from falctl.router.runners import news
from falctl.router.runners.link import Change, Link, News
from falctl.router.runners.orphans import Orphans
from falctl.tasks import spawn

log = logging.getLogger(__name__)

_SERVES = frozenset({"ready", "draining"})
_ORDER = {"starting": 0, "ready": 1, "draining": 2}
_RETURNS = frozenset({"starting", "backoff"})


class FleetLinks:
    """One `Link` per runner whose process serves. The board tells what is true, the streams that it has changed."""

    def __init__(self, board: Board, home: Home, apps: Apps, ledger: Ledger) -> None:
        self._board = board
        self._home = home
        self._apps = apps
        for app in apps:
            app.driver.load = self.load
        self._ledger = ledger
        self._index = HintIndex(board)
        self._links: dict[RunnerId, Link] = {}
        self._retired: WeakSet[Link] = WeakSet()
        """Links that still say farewell."""
        self._states: dict[RunnerId, tuple[int, str]] = {}
        """Epoch and state of each runner, as last heard."""
        self.orphans = Orphans(self._links)

        self.printed: Callable[[wire.Printed], None] = _nobody
        """Who hears what apps print; set by `RequestLogs`."""
        self.stepped: Callable[[wire.Stepped], None] = _nobody
        """Who hears of steps; set by `Steps`."""
        self.released: list[Callable[[RequestId], None]] = []
        """Who hears that a request has given its slot back, or that its runner is gone."""
        self.came_up: Callable[[Link], None] = _nobody
        """Who hears that a runner takes work, of a new incarnation or again; set by `StandingModels`."""

    def discover(self) -> None:
        """Learn of every runner from the board: a restarted router finds the fleet by itself."""
        for runner in range(self._board.runners):
            life = self._board.life(runner)
            if life is None:
                self.learn(runner, Epoch(0), "starting")
            else:
                self.learn(runner, life.epoch, life.state)

    def learn(self, runner: int, epoch: int, state: str, reason: str = "") -> None:
        """
        A runner's process is in this state; what is older than what we know is dropped.

        That is news of an older incarnation, and of an earlier state: the board may have told us of a later one.
        """
        number, known = RunnerId(runner), self._states.get(RunnerId(runner))
        if known is not None and (
            known == (epoch, state) or (epoch, _order(state)) < (known[0], _order(known[1]))
        ):
            return
        self._states[number] = (epoch, state)
        self._ledger.note(f"runner {runner} {state}" + (f": {reason}" if reason else ""))
        link = self._links.get(number)
        if link is not None and (link.epoch != epoch or state not in _SERVES):
            del self._links[number]
            link.retire()
            self._retired.add(link)
            self._tell_released(link.requests)
            self.orphans.look()
            link = None
        if state in _SERVES:
            self._serve(number, Epoch(epoch), link, draining=state == "draining")
        else:
            self._driver(number).handle(RunnerDown(number, returns=state in _RETURNS))

    async def greeted(self, *, within_s: float) -> None:
        """
        Return when every runner that serves has told of its slots and hints, or after *within_s*.

        Whoever is dispatched before goes to the runner that answers first, not to the one that is warm.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                for link in tuple(self._links.values()):
                    await link.greeted.wait()

    def refresh(self) -> None:
        """Take over what has changed on the board; costs next to nothing if nothing has."""
        for runner in self._index.refresh():
            row = self._index.row(runner)
            if row is not None:
                self._driver(runner).tell_pins(runner, row.epoch, news.pinned_in(row))
                self._driver(runner).tell_hints(runner, row.epoch, news.hints_of(row), news.stock_of(row))

    def row(self, runner: RunnerId) -> RunnerRow | None:
        """Return what the board said of *runner* at the last `refresh`; None: nothing of the incarnation that serves."""
        row, link = self._index.row(runner), self._links.get(runner)
        return row if row is not None and link is not None and row.epoch == link.epoch else None

    def link(self, runner: RunnerId) -> Link | None:
        """Return the link to the incarnation that serves now and is heard of; None: there is none."""
        link = self._links.get(runner)
        return link if link is not None and link.up else None

    def load(self, load: Load) -> None:
        """Have a runner load a model; the end is told by its stream, or here if it cannot even be asked."""
        link = self.find(load.runner, load.epoch)
        if link is not None:
            spawn(self._load(link, load), name=f"load-{load.runner}-{load.hint[:64]}")

    async def _load(self, link: Link, load: Load) -> None:
        log.info("runner.loads runner=%d model=%s evicts=%s", load.runner, load.hint, ",".join(load.evict))
        if not await link.load(load.hint, load.evict):
            self._end_load(link, wire.LoadEnded(load.epoch, load.hint, ok=False, load_s=0.0))

    def find(self, runner: RunnerId, epoch: Epoch) -> Link | None:
        """Return the link to that incarnation; None if it is gone."""
        link = self._links.get(runner)
        return link if link is not None and link.epoch == epoch else None

    def holds(self, request: RequestId) -> bool:
        """Return whether some runner was sent *request* and has not said that it is over there."""
        return any(link.holds(request) for link in self._links.values())

    def any_up(self, app: LocalApp) -> Link | None:
        """Return some link whose runner, of *app*, answers; None if there is none."""
        return next((link for link in self._links.values() if link.up and link.runner in app.runners), None)

    def states(self) -> dict[RunnerId, tuple[int, str]]:
        """Return epoch and state of every runner."""
        return self._states

    def up_count(self, app: LocalApp) -> int:
        """Return how many runners of *app* take requests."""
        return sum(link.up for link in self._links.values() if link.runner in app.runners)

    async def close(self) -> None:
        """Close every link."""
        for link in (*self._links.values(), *self._retired):
            await link.close()

    def _serve(self, runner: RunnerId, epoch: Epoch, link: Link | None, *, draining: bool) -> None:
        if link is None:
            # Not up before its Hello: until then nobody knows which of its slots are taken.
            self._driver(runner).handle(RunnerDown(runner, returns=not draining))
            socket = self._home.runner_socket(runner, epoch)
            self._links[runner] = Link(runner, epoch, socket=socket, ears=self)
        elif draining:
            self._driver(runner).handle(RunnerDrains(runner, epoch))

    def hear(self, link: Link, message: News) -> None:
        match message:
            case wire.Printed():
                self.printed(message)
            case wire.Stepped():
                self.stepped(message)
            case _:
                self.refresh()
                self.orphans.look()
                self._follow(link, message)

    def _follow(self, link: Link, message: Change) -> None:
        """Tell the scheduler what has changed."""
        match message:
            case wire.Hello():
                self._apps.of(link.runner).learn(settings_of(message))
                log.debug("runner.up runner=%d epoch=%d slots=%d", link.runner, link.epoch, message.slots)
                self._driver(link.runner).handle(news.runner_up(link.runner, message, self.row(link.runner)))
                if self._states[link.runner][1] == "draining":
                    self._driver(link.runner).handle(RunnerDrains(link.runner, link.epoch))
                else:
                    self.came_up(link)
            case wire.Released():
                released = news.released(link.runner, message)
                self._driver(link.runner).handle(released)
                self._tell_released([released.request])
            case wire.LoadEnded():
                self._end_load(link, message)
            case wire.Draining():
                self._driver(link.runner).handle(RunnerDrains(link.runner, link.epoch))
            case wire.HintsChanged():
                pass  # the refresh has told

    def _tell_released(self, requests: Iterable[RequestId]) -> None:
        for request in requests:
            for hear in self.released:
                hear(request)

    def _end_load(self, link: Link, load: wire.LoadEnded) -> None:
        if load.ok:
            source, load_s = load.tier or "?", load.load_s
            log.info(
                "runner.loaded runner=%d model=%s from=%s s=%.1f", link.runner, load.hint, source, load_s
            )
        ended = news.load_ended(link.runner, load, self.row(link.runner))
        self._driver(link.runner).handle(ended)

    def lost(self, link: Link) -> None:
        """Send nothing to a runner whose slots we do not hear of; it may be back at once."""
        log.info("runner.stream_lost runner=%d epoch=%d", link.runner, link.epoch)
        self._driver(link.runner).handle(RunnerDrains(link.runner, link.epoch))

    def is_alive(self, link: Link) -> bool:
        life = self._board.life(link.runner)
        return life is not None and life.epoch == link.epoch and life.state in _SERVES

    def _driver(self, runner: RunnerId) -> Driver:
        return self._apps.of(runner).driver


def _nobody(_: object) -> None:
    """Hear nothing."""


def _order(state: str) -> int:
    """Return a number that grows in the life of one incarnation."""
    return _ORDER.get(state, len(_ORDER))
