"""
The models that a runner is to hold without a request: those of `cache.preload`, and those that were pinned there.

Pins are a host's, and end with it. They are remembered here, and a runner that comes back is given them again; a
router that comes back finds them on the board. If both end at once they are forgotten: `cache.preload` is for good.
A preload that fails is told once. One that its runner did not survive is tried again after a while, and a few times only
(`falctl.core.preloading`); a pin stays, for when a request or a person has it loaded. A configuration that is read anew
has what it adds loaded, and what it no longer names not waited for; what is loaded already stays.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final, TypeAlias

from falctl.clock import monotonic_s
from falctl.config import Config
from falctl.core.preloading import Deaths
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

Preload: TypeAlias = tuple[str, RunnerId | None]
"""A model, and the runner that it is meant for; None: any."""


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
        self._preloads: dict[str, list[Preload]] = {}
        self._pins: dict[RunnerId, set[str]] = {}
        self._epochs: dict[RunnerId, Epoch] = {}
        self._spreading: dict[str, asyncio.Task[None]] = {}
        self._deaths = Deaths()
        self._ahead_now: dict[tuple[str, Preload], asyncio.Task[None]] = {}
        """What waits to be loaded ahead, or is being loaded."""

    def preload(self, config: Config) -> None:
        """Have what *config* says preloaded by runners that come up from now on."""
        for app in self._apps:
            self._preloads[app.alias] = [read_preload(entry) for entry in config.cache_of(app.alias).preload]
        self._warn_of_nowhere()

    def reload(self, config: Config) -> None:
        """Go by *config* from now on: load ahead what it adds, and what was given up; wait no more for what it has not."""
        before = self._preloads
        self._preloads = {}
        self.preload(config)
        for app in self._apps:
            wanted = self._preloads[app.alias]
            for entry in before.get(app.alias, ()):
                if entry not in wanted and not self._is_pinned(*entry):
                    self._no_more(app, entry)
            for entry in wanted:
                dead = self._deaths.forbid((app.alias, entry[0]), now=monotonic_s())
                self._deaths.forget((app.alias, entry[0]))
                if dead or entry not in before.get(app.alias, ()):
                    self._ahead(app, *entry)

    def _no_more(self, app: LocalApp, entry: Preload) -> None:
        # Out of the table at once, for its end is heard of later: a reload that follows closely may want it again.
        if (task := self._ahead_now.pop((app.alias, entry), None)) is not None:
            task.cancel()

    def _warn_of_nowhere(self) -> None:
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
        key = app.alias, (model, runner)
        if self._deaths.forbid((app.alias, model), now=monotonic_s()) or key in self._ahead_now:
            return
        task = spawn(self._load(app, model, runner), name=f"ahead-{runner}-{model[:64]}")
        self._ahead_now[key] = task

        def over(_: asyncio.Task[None]) -> None:
            if self._ahead_now.get(key) is task:
                del self._ahead_now[key]

        task.add_done_callback(over)

    async def _load(self, app: LocalApp, model: str, runner: RunnerId | None, *, first: bool = False) -> None:
        try:
            with self._wishes.wish(app, model, runner=runner, first=first) as wish:
                end = await wish.end()
        except QueueFullError as error:
            self._warn(f"{model} is not loaded ahead: {error}")
            return
        if end.news in ("loaded", "there"):
            self._deaths.forget((app.alias, model))
        if end.news == "lost":
            self._lost(app, model, runner, why=why_failed(app, end))
        elif end.news == "loaded":
            log.info("model.loaded_ahead model=%s runner=%s load_s=%.2f", model, end.runner, end.load_s)
        elif end.news != "there":
            self._warn(f"{model} is not loaded ahead: {why_failed(app, end)}")

    def _lost(self, app: LocalApp, model: str, runner: RunnerId | None, *, why: str) -> None:
        pause_s = self._deaths.note((app.alias, model), now=monotonic_s())
        then = (
            "it is not tried again before a reload" if pause_s is None else f"tried again in {pause_s:.0f} s"
        )
        self._warn(f"{model} is not loaded ahead: {why}; {then}")
        if pause_s is not None:
            asyncio.get_running_loop().call_later(pause_s, self._again, app, model, runner)

    def _again(self, app: LocalApp, model: str, runner: RunnerId | None) -> None:
        """Load ahead what a runner died of, if it is still meant to be there."""
        wanted = (model, runner) in self._preloads.get(app.alias, ())
        if wanted or self._is_pinned(model, runner):
            self._ahead(app, model, runner)

    def _is_pinned(self, model: str, runner: RunnerId | None) -> bool:
        return runner is not None and model in self._pins.get(runner, ())

    async def _gather(self, app: LocalApp) -> None:
        """Return when no other runner of *app* is on its way, or after `GATHER_S`."""
        latest_at = monotonic_s() + GATHER_S
        fleet = app.driver.scheduler.fleet
        while fleet.returning and monotonic_s() < latest_at:  # noqa: ASYNC110 - many things can end it
            await asyncio.sleep(_LOOK_S)

    def _warn(self, text: str) -> None:
        log.warning("model.missing %s", text)
        self._ledger.note(text)


def read_preload(entry: str) -> Preload:
    """Return model and runner of an entry of `cache.preload`: ``"MODEL"`` or ``"MODEL@2"``."""
    model, _, runner = entry.rpartition("@")
    if model and runner.isascii() and runner.isdecimal():
        return model, RunnerId(int(runner))
    return entry, None
