"""A lease as a block: plain on a thread, async on an event loop, whose thread no load may hold up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Generic, TypeVar

M = TypeVar("M")


def refuse_on_a_loop(instead: str) -> None:
    """Raise RuntimeError if this thread runs an event loop; *instead* is what to write there."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    msg = f"this may load a model, and would hold up every other request on this event loop; {instead}"
    raise RuntimeError(msg)


class Lease(Generic[M]):
    """Holds a model for one ``with`` or ``async with`` block; made by `ModelCache.lease`."""

    def __init__(
        self,
        take: Callable[[], tuple[M, Callable[[], None]]],
        run: Callable[[Callable[[], None]], Awaitable[None]],
    ) -> None:
        self._take = take
        self._run = run
        self._taken: tuple[M, Callable[[], None]] | None = None

    def __enter__(self) -> M:
        refuse_on_a_loop("use `async with`")
        self._enter()
        return self._model

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit()

    async def __aenter__(self) -> M:
        try:
            await self._run(self._enter)
        except BaseException:
            # Cancelled while the thread loaded: it may have got the model, and nobody will give it back.
            if self._taken is not None:
                await self._run(self._exit)
            raise
        return self._model

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._run(self._exit)

    @property
    def _model(self) -> M:
        assert self._taken is not None, "entered without a model"
        return self._taken[0]

    def _enter(self) -> None:
        assert self._taken is None, "a lease is for one block"
        self._taken = self._take()

    def _exit(self) -> None:
        assert self._taken is not None, "left without having been entered"
        (_, give_back), self._taken = self._taken, None
        give_back()
