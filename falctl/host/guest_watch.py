"""
Has idle models give way when other programs want the card: looks at the board, where the supervisor writes what NVML says.

Nothing else is needed for it: not the router, no message. The moves are on the app's thread, so they wait for the
request that runs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final

from falctl.board.board import Board
from falctl.core.guest import Guest, Look, share
from falctl.core.types import RunnerId
from falctl.host.app_threads import AppThreads
from falctl.host.prints.aside import aside
from falctl.tasks import spawn
from falctl.toolkit import ModelCache

log = logging.getLogger(__name__)

PERIOD_S: Final = 1.0
"""As often as the supervisor looks at the cards."""


class GuestWatch:
    """Watches the first card of *runner*, where its models are, for *caches*, to which more may come."""

    def __init__(
        self, board: Board, runner: RunnerId, *, caches: Sequence[ModelCache[Any]], reserve_bytes: int
    ) -> None:
        self._board = board
        self._runner = runner
        self._caches = caches
        self._reserve_bytes = reserve_bytes
        self._guest = Guest()

    def start(self, threads: AppThreads) -> None:
        """Watch from now on, for as long as the process lives."""
        spawn(self._watch(threads), name="guest")

    def due_bytes(self) -> int:
        """Return how many bytes idle models of this runner are to free now; 0: none. Does not block."""
        card = self._card(self._runner)
        row = None if card is None else self._board.gpu(card)
        if row is None or row.kind != "cuda" or row.state != "ok":
            return 0
        held = self._held_on(card)
        look = Look(row.at, row.total_bytes, row.used_bytes, sum(held))
        nbytes = self._guest.heed(look, reserve_bytes=self._reserve_bytes)
        return share(nbytes, sum(size > 0 for size in held))

    def give_way(self, nbytes: int) -> None:
        """Have *nbytes* of idle models leave the card, if there are so many; blocks. On the app's thread."""
        with aside():
            for cache in self._caches:
                try:
                    left = cache.give_way(nbytes)
                except Exception:
                    log.exception("cache.give_way_failed")
                    continue
                if left:
                    log.info("cache.gave_way bytes=%d to other programs on the card", nbytes)
                    return

    def _held_on(self, card: int | None) -> list[int]:
        """Return what each of our runners on *card* holds of it."""
        runners = [RunnerId(r) for r in range(self._board.runners) if self._card(RunnerId(r)) == card]
        return [row.device_bytes for each in runners if (row := self._board.runner(each)) is not None]

    def _card(self, runner: RunnerId) -> int | None:
        life = self._board.life(runner)
        return None if life is None or not life.gpus else life.gpus[0]

    async def _watch(self, threads: AppThreads) -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            if nbytes := self.due_bytes():
                await threads.run(self.give_way, nbytes)
