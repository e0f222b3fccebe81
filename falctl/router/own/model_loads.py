"""A load that a person asks for, told while it happens: where, how far it is, and how it ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Final

from falctl.core.events import TellWish, WishNews
from falctl.core.fleet import Runner
from falctl.core.types import RunnerId
from falctl.errors import UnavailableError
from falctl.router.dispatch.apps import LocalApp
from falctl.router.dispatch.wishes import ModelWishes, Wish, is_over
from falctl.router.own.model_orders import Asked, Facts, ModelOrders

LOOK_S: Final = 0.2
"""How often who waits hears how far a load is."""

_WHY: Final[dict[WishNews, str]] = {
    "failed": "the end of its load was not heard of",
    "lost": "runner {runner} was lost while it loaded",
    "no_runner": "no runner is up and none will be; `falctl status` says why",
    "takes_no_loads": "this app loads its models itself: it has no model cache of ours with a load=, or more than one",
    "full": "no runner has free room for it",
    "too_large": "it is too large for the card of every runner that it may go to",
    "pins_leave_no_room": "there is no room for it beside what is pinned: {pinned}; `falctl unpin` one of them",
}


class ModelLoads:
    """Begins loads and tells of them."""

    def __init__(self, orders: ModelOrders, wishes: ModelWishes) -> None:
        self._orders = orders
        self._wishes = wishes

    def load(self, asked: Asked) -> AsyncGenerator[Facts, None]:
        """
        Return what happens to a load that begins when this is first read, each time with all that is known.

        ``state`` is waiting, then loading, at the end loaded, there (it was) or failed. A load that was begun goes on
        when nobody reads any more.

        Raises:
            NotFoundError, BadRequestError, UnavailableError: as `ModelOrders.do`.
        """
        app, runner = self._orders.place(asked)
        if asked.tier == "ram":
            return self._load_aside(
                asked.model, self._aside_on(app, asked.model) if runner is None else runner
            )
        return self._load(app, asked.model, runner)

    async def _load(self, app: LocalApp, model: str, runner: RunnerId | None) -> AsyncGenerator[Facts, None]:
        with self._wishes.wish(app, model, runner=runner) as wish:
            last: Facts = {"state": "waiting", "model": model}
            yield last
            while True:
                news = await _news(wish)
                if news is not None and is_over(news):
                    yield _end(app, model, news)
                    return
                now = last if news is None else _begun(model, news)
                if now["state"] == "loading":
                    now = now | {"fraction": self._fraction(now["runner"], model)}
                if now != last:
                    last = now
                    yield now

    async def _load_aside(self, model: str, runner: RunnerId) -> AsyncGenerator[Facts, None]:
        """Load into host memory alone: no room on a card is made for that, so that the scheduler need not know."""
        last: Facts = {"state": "loading", "model": model, "runner": runner, "evict": [], "fraction": None}
        yield last
        order = asyncio.ensure_future(
            self._orders.order(runner, {"do": "load", "model": model, "tier": "ram"})
        )
        while not (await asyncio.wait([order], timeout=LOOK_S))[0]:
            now = last | {"fraction": self._fraction(runner, model)}
            if now != last:
                last = now
                yield now
        answer = order.result()
        told: Facts = {"model": model, "runner": runner}
        if answer.failed:
            yield {"state": "failed", **told, "detail": answer.detail}
        else:
            yield {"state": "loaded" if answer.told["changed"] else "there", **told, **answer.told}

    def _aside_on(self, app: LocalApp, model: str) -> RunnerId:
        """Return who is to have *model* in host memory: who has it there or on its card, else who is least busy."""
        views = [view for view in app.driver.scheduler.fleet.runners.values() if view.takes_jobs]
        if not views:
            raise UnavailableError(_WHY["takes_no_loads"])
        names = self._orders.names(model)

        def rank(view: Runner) -> tuple[bool, int, RunnerId]:
            row = self._orders.row(view.runner, names)
            return row is None or row.tier == "disk", len(view.in_use) + len(view.loading), view.runner

        return min(views, key=rank).runner

    def _fraction(self, runner: RunnerId, model: str) -> float | None:
        row = self._orders.row(runner, self._orders.names(model))
        return None if row is None else row.fraction


async def _news(wish: Wish) -> TellWish | None:
    """Return what is new of *wish*; None: nothing for a while."""
    with contextlib.suppress(TimeoutError):
        return await asyncio.wait_for(wish.news(), LOOK_S)
    return None


def _begun(model: str, news: TellWish) -> Facts:
    return {"state": "loading", "model": model, "runner": news.runner, "evict": list(news.evict)}


def _end(app: LocalApp, model: str, news: TellWish) -> Facts:
    told: Facts = {"model": model, "runner": news.runner}
    if news.news == "there":
        return {"state": "there", **told}
    if news.news == "loaded":
        return {"state": "loaded", **told, "load_s": news.load_s, "from": news.tier, "tier": "vram"}
    return {"state": "failed", **told, "detail": why_failed(app, news)}


def why_failed(app: LocalApp, news: TellWish) -> str:
    """Return why a wish for a model of *app* was not granted, for a person."""
    pinned = ", ".join(
        f"{name} (runner {view.runner})"
        for view in app.driver.scheduler.fleet.runners.values()
        for name in sorted(view.pinned)
    )
    return news.error or _WHY[news.news].format(runner=news.runner, pinned=pinned)
