"""What is to be loaded ahead follows the configuration, however fast that changes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from falctl.config import Config
from falctl.router.own.standing import StandingModels


class Wishes:
    """Grants nothing, and knows who wishes."""

    def __init__(self) -> None:
        self.open: list[str] = []

    @contextmanager
    def wish(self, app: Any, model: str, **_: object) -> Iterator[Any]:
        self.open.append(model)
        try:
            yield SimpleNamespace(end=asyncio.Event().wait)
        finally:
            self.open.remove(model)


async def _turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_what_is_left_out_and_wanted_again_at_once_is_wished_for_once() -> None:
    async def play() -> None:
        wishes = Wishes()
        apps: Any = [SimpleNamespace(alias="run", runners=(0,))]
        standing = StandingModels(apps, SimpleNamespace(), wishes, ledger=SimpleNamespace())  # type: ignore[arg-type]
        want, leave = (Config.model_validate({"cache": {"preload": some}}) for some in (["a"], []))
        standing.reload(want)
        await _turn()
        assert wishes.open == ["a"]
        for config in (leave, want):  # before the loop runs
            standing.reload(config)
        await _turn()
        assert wishes.open == ["a"]
        standing.reload(want)
        await _turn()
        assert wishes.open == ["a"], "nothing new"
        standing.reload(leave)
        await _turn()
        assert wishes.open == []

    asyncio.run(play())
