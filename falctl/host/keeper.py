"""The two ends of a request: it gets a slot, and gives it back with the hints as they are then."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Sequence
from typing import Any

from falctl.core.types import Hint
from falctl.host.app_threads import AppThreads
from falctl.host.head import RequestHead
from falctl.host.hint_source import Asked, HintSource
from falctl.host.report import Report
from falctl.host.ticket import Cache, Slots, Ticket
from falctl.toolkit import ModelCache

log = logging.getLogger(__name__)


class Keeper:
    """Admits requests and ends them. Owned by the event loop."""

    def __init__(self, *, slots: Slots, hints: HintSource, report: Report, threads: AppThreads) -> None:
        self.slots = slots
        self.report = report
        self._hints = hints
        self._threads = threads

    def admit(self, head: RequestHead, *, path: str = "", websocket: bool = False) -> Ticket | None:
        """Return the ticket of a request that may start now; None when no slot is free or we drain."""
        if not self.slots.free:
            return None
        task = asyncio.current_task()
        assert task is not None, "admitted outside a task"
        warm = self._hints.holds(head.hint)
        ticket = Ticket(head.request, head.hint, warm=warm, task=task, path=path, websocket=websocket)
        self.report.logbook.drain()
        ticket.lifetime, ticket.previews = head.lifetime, head.previews
        ticket.keep_alive_s = head.keep_alive_s
        self.slots.take(ticket)
        self.report.started(ticket)
        return ticket

    async def refresh(self, ticket: Ticket) -> None:
        """Publish the hints as they are now, while *ticket* goes on."""
        if (asked := await self._ask(ticket)) is not None:
            self.report.changed(asked)

    async def end(self, ticket: Ticket) -> None:
        """Ask for the hints, free the slot, publish, tell the router. The second call does nothing."""
        if ticket.ending:
            return
        ticket.ending = True
        if ticket.ran_out and self._hints.given and not self.report.caches:
            log.warning("request.ran_out request=%s: no cache of ours could let a model go", ticket.request)
            ticket.ends_runner = True
        if ticket.broke_card or ticket.ends_runner:
            # Failing quickly would make this the runner that is always free, and draw every request here.
            self.slots.drain()
            self.report.draining()
        asked = None
        try:
            if ticket.kept:
                await self._let_go(ticket)
            if ticket.ran_out:
                await self._give_way(ticket)
            asked = await self._ask(ticket)
        finally:
            # A cancellation that was under way ends the wait, and must not keep the slot.
            self.report.logbook.drain()
            self.slots.release(ticket)
            self.report.released(ticket, asked, loads=self._loads(ticket, asked))
        await self.report.events.flush()

    def verdict(self, ticket: Ticket) -> Cache:
        """
        Return where the model of *ticket* came from, as far as is known now.

        An app that loads without a model cache tells it by its hints alone: what was not warm before and is now was loaded.
        """
        if (leased := ticket.cache) is not None:
            return leased
        if ticket.hint is None or self.report.knows_loads:
            return "none"
        if ticket.warm:
            return "hit"
        return "disk" if self._hints.holds(ticket.hint) else "none"

    def hints_header(self) -> bytes | None:
        """Return the value of the hints header; None when the app gives no hints."""
        return self._hints.header()

    async def _let_go(self, ticket: Ticket) -> None:
        try:
            await self._threads.run(ticket.let_go)
        except Exception:
            # The app's `unload`; the answer has been given, and the model is out of the cache.
            log.exception("request.give_back_failed request=%s", ticket.request)

    async def _give_way(self, ticket: Ticket) -> None:
        """Have idle models leave, so that the next request finds more memory than this one did."""
        # Only here is nobody left who handles the error, whose frames held what they had allocated.
        try:
            await self._threads.run(_make_room, tuple(self.report.caches), next(iter(ticket.leases), ""))
        except Exception:
            log.exception("request.give_way_failed request=%s", ticket.request)

    async def _ask(self, ticket: Ticket) -> Asked | None:
        asked, ticket.asked = ticket.asked, None
        if asked is None and self._hints.given:
            asked = await self._threads.run(self._hints.ask)
        return asked

    def _loads(self, ticket: Ticket, asked: Asked | None) -> int:
        if ticket.leases or self.report.knows_loads:
            return sum(verdict == "disk" for verdict in ticket.leases.values())
        kept: tuple[Hint, ...] = (asked.cleaned.kept if asked is not None else None) or ()
        return int(ticket.hint in kept and not ticket.warm)


def _make_room(caches: Sequence[ModelCache[Any]], keep: str) -> None:
    gc.collect()
    for cache in caches:
        cache.evict_others(keep=keep)
