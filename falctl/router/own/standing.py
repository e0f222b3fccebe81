"""
The models that a runner is to hold without a request: those of `cache.preload`, and those that were pinned there.

Pins are a host's, and end with it. They are remembered here, and a runner that comes back is given them again; a
router that comes back finds them on the board. If both end at once they are forgotten: `cache.preload` is for good.
A preload that fails is told once. What a runner died of while it loaded it is not loaded ahead again; a pin stays, for
when a request or a person has it loaded.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from falctl.clock import monotonic_s
from falctl.config import Config
from falctl.core.types import Epoch, RunnerId
from falctl.errors import QueueFullError
from falctl.router.dispatch.apps import Apps, LocalApp
from falctl.router.dispatch.wishes import ModelWishes
from falctl.router.own.ledger import Ledger
from falctl.router.own.model_loads import why_failed
from falctl.router.own.model_orders import ModelOrders
from falctl.router.runners.fleet import FleetLinks
from falctl.router.runners.link import Link
from falctl.tasks import spawn

log = logging.getLogger(__name__)

GATHER_S: Final = 10.0
"""How long a first runner waits for others that start, so that what is preloaded is spread over all of them."""
_LOOK_S: Final = 0.1


class StandingModels:
    """Gives runners their models when they come up."""

    def __init__(self, apps: Apps, fleet: FleetLinks, wishes: ModelWishes, *, ledger: Ledger) -> None:
        self.orders = ModelOrders(apps, fleet)
        self.orders.pinned = self._pinned
        self.orders.was_pinned = lambda runner, names: self._pins.get(runner, set()).intersection(names)
        fleet.came_up = self._came_up
        self._apps = apps
        self._fleet = fleet
        self._wishes = wishes
        self._ledger = ledger
        self._preloads: dict[str, list[tuple[str, RunnerId | None]]] = {}
        self._pins: dict[RunnerId, set[str]] = {}
        self._epochs: dict[RunnerId, Epoch] = {}
        self._spreading: dict[str, asyncio.Task[None]] = {}
        self._deadly: set[tuple[str, str]] = set()
        """App and model of those whose runner died while it loaded them."""

    def preload(self, config: Config) -> None:
        """Have what *config* says preloaded by runners that come up from now on."""
        for app in self._apps:
            self._preloads[app.alias] = [read_preload(entry) for entry in config.cache_of(app.alias).preload]
        numbers = {runner for app in self._apps for runner in app.runners}
        nowhere = {
            (m, r) for wanted in self._preloads.values() for m, r in wanted if r not in numbers | {None}
        }
        for model, runner in sorted(nowhere, key=str):
            self._warn(
                f"{model} is not loaded ahead: cache.preload wants it on runner {runner}, and there is none"
            )

    def _pinned(self, runner: RunnerId, model: str, pinned: bool) -> None:  # noqa: FBT001 - a callback's
        """Somebody has pinned a model, which is loaded if it is not there, or has unpinned it."""
        self._note_pin(runner, model, pinned)
        seen = self.orders.row(runner, (model,))
        if pinned and (seen is None or seen.tier != "vram"):
            work = self._load(self._apps.of(runner), model, runner, first=True)
            spawn(work, name=f"pinned-{runner}-{model[:64]}")

    def _note_pin(self, runner: RunnerId, model: str, pinned: bool) -> None:  # noqa: FBT001 - a callback's
        names = self._pins.setdefault(runner, set())
        if pinned:
            names.add(model)
        else:
            names.discard(model)

    def _came_up(self, link: Link) -> None:
        runner = link.runner
        if (row := self._fleet.row(runner)) is not None:
            self._pins.setdefault(runner, set()).update(model.name for model in row.models if model.pinned)
        if self._epochs.get(runner) == link.epoch:
            return  # its stream had broken, no more
        self._epochs[runner] = link.epoch
        app = self._apps.of(runner)
        spawn(self._furnish(app, runner), name=f"furnish-{runner}-{link.epoch}")
        if (known := self._spreading.get(app.alias)) is None or known.done():
            self._spreading[app.alias] = spawn(self._spread(app), name=f"preload-{app.alias}")

    async def _furnish(self, app: LocalApp, runner: RunnerId) -> None:
        """Give *runner* the models that are meant for it."""
        for model in sorted(self._pins.get(runner, ())):
            answer = await self.orders.order(runner, {"do": "pin", "model": model})
            if answer.failed:
                self._warn(f"{model} is not pinned any more on {answer.detail}")
                self._note_pin(runner, model, False)  # noqa: FBT003 - as it is called by others
            else:
                self._ahead(app, model, runner)
        self._preload(app, runner)

    async def _spread(self, app: LocalApp) -> None:
        """Give the runners of *app* the models that are meant for any."""
        await self._gather(app)
        self._preload(app, None)

    def _preload(self, app: LocalApp, runner: RunnerId | None) -> None:
        for model, on in self._preloads.get(app.alias, ()):
            if on == runner:
                self._ahead(app, model, on)

    def _ahead(self, app: LocalApp, model: str, runner: RunnerId | None) -> None:
        if (app.alias, model) not in self._deadly:
            spawn(self._load(app, model, runner), name=f"ahead-{runner}-{model[:64]}")

    async def _load(self, app: LocalApp, model: str, runner: RunnerId | None, *, first: bool = False) -> None:
        try:
            with self._wishes.wish(app, model, runner=runner, first=first) as wish:
                end = await wish.end()
        except QueueFullError as error:
            self._warn(f"{model} is not loaded ahead: {error}")
            return
        if end.news == "lost":
            self._deadly.add((app.alias, model))
        if end.news == "loaded":
            log.info("model.loaded_ahead model=%s runner=%s load_s=%.2f", model, end.runner, end.load_s)
        elif end.news != "there":
            self._warn(f"{model} is not loaded ahead: {why_failed(app, end)}")

    async def _gather(self, app: LocalApp) -> None:
        """Return when no other runner of *app* is on its way, or after `GATHER_S`."""
        latest_at = monotonic_s() + GATHER_S
        fleet = app.driver.scheduler.fleet
        while fleet.returning and monotonic_s() < latest_at:  # noqa: ASYNC110 - many things can end it
            await asyncio.sleep(_LOOK_S)

    def _warn(self, text: str) -> None:
        log.warning("model.missing %s", text)
        self._ledger.note(text)


def read_preload(entry: str) -> tuple[str, RunnerId | None]:
    """Return model and runner of an entry of `cache.preload`: ``"MODEL"`` or ``"MODEL@2"``."""
    model, _, runner = entry.rpartition("@")
    if model and runner.isascii() and runner.isdecimal():
        return model, RunnerId(int(runner))
    return entry, None
