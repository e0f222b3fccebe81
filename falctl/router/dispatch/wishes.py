"""Who has wished for a model, and hears what the scheduler tells of that."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Final

from falctl.core.events import TellWish, WishDropped, Wished
from falctl.core.types import Hint, RunnerId
from falctl.errors import QueueFullError
from falctl.router.dispatch.apps import Apps, LocalApp

WISHES_MAX: Final = 256
_GOES_ON: Final = frozenset({"begun", "joined"})


class Wish:
    """One wish; `news` until there is none."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[TellWish] = asyncio.Queue()

    async def news(self) -> TellWish:
        """Return the next news of it, as soon as there are."""
        return await self.told.get()

    async def end(self) -> TellWish:
        """Return the last news of it, however long that takes."""
        while True:
            if is_over(news := await self.news()):
                return news


def is_over(news: TellWish) -> bool:
    """Return whether nothing more comes after *news*."""
    return news.news not in _GOES_ON


class ModelWishes:
    """The wishes of all apps."""

    def __init__(self, apps: Apps) -> None:
        self._wishes: dict[int, Wish] = {}
        self._numbers = count()
        for app in apps:
            app.driver.tell_wish = self._hear

    @contextmanager
    def wish(
        self, app: LocalApp, model: str, *, runner: RunnerId | None = None, first: bool = True
    ) -> Iterator[Wish]:
        """
        Wish for *model* as `falctl.core.events.Wished` says; it is forgotten when the block ends, its load goes on.

        Raises:
            QueueFullError: too many have been wished for.
        """
        if len(self._wishes) >= WISHES_MAX:
            msg = f"{WISHES_MAX} models are waited for by name; ask for this one again when some are loaded"
            raise QueueFullError(msg)
        number = next(self._numbers)
        wish = self._wishes[number] = Wish()
        app.driver.handle(Wished(number, Hint(model), runner, first))
        try:
            yield wish
        finally:
            del self._wishes[number]
            app.driver.handle(WishDropped(number))

    def _hear(self, told: TellWish) -> None:
        if (wish := self._wishes.get(told.number)) is not None:
            wish.told.put_nowait(told)
