"""
The runner's row on the board and the events about it. Owned by the event loop, which alone writes the row.

State first, event second: a message says that something happened, and the row that it speaks of is on the board
before the message is queued.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from falctl.board.board import Board
from falctl.board.rows import Executing, ModelRow, RunnerRow
from falctl.clock import monotonic_s
from falctl.core.residency import Resident
from falctl.core.types import Epoch, Hint
from falctl.host.device_use import reserved_bytes
from falctl.host.events import EventHub
from falctl.host.failures import least_bytes
from falctl.host.hint_source import Asked, HintSource
from falctl.host.limits import Limits
from falctl.host.load_order import LoadOrder
from falctl.host.previews import as_text
from falctl.host.prints.logbook import Logbook
from falctl.host.telling import said
from falctl.host.ticket import Slots, Ticket
from falctl.toolkit import ModelCache, RequestError
from falctl.wire import JOINED, Draining, Hello, HintsChanged, HostSpec, LoadEnded, Released, Stepped

PROGRESS_PAUSE_S: Final = 0.05
"""Shortest pause between two steps of a request that are told; the last one always is."""
STEPS_LAG_BYTES_MAX: Final = 256 << 10
"""A reader of the event stream that is so far behind is told of no steps: they are on the board."""


class Report:
    """What others may know of this runner."""

    def __init__(self, board: Board, spec: HostSpec, *, slots: Slots, hints: HintSource) -> None:
        self.events = EventHub()
        self.logbook = Logbook(self.events, epoch=spec.epoch)
        self.caches: list[ModelCache[Any]] = []
        self.limits = Limits()
        """What the app declares, once it is there."""
        self.joint = ""
        """What its models' names have between a base and what is laid upon it."""
        self._board = board
        self._runner = spec.runner
        self._epoch = spec.epoch
        self._slots = slots
        self._hints = hints
        self._gpu = " + ".join(spec.card_names)
        self._loading: list[str] = []
        self._loads = 0
        self._progress_at = monotonic_s()
        self._loop = asyncio.get_running_loop()

    @property
    def cache(self) -> ModelCache[Any] | None:
        """Return the cache that load jobs are for; None when the app has none, or several."""
        able = len(self.caches) == 1 and self.caches[0].loads and self._hints.given
        return self.caches[0] if able else None

    @property
    def only_cache(self) -> ModelCache[Any] | None:
        """Return the app's cache, also one that the app fills itself; None when it has none, or several."""
        return self.caches[0] if len(self.caches) == 1 else None

    @property
    def knows_loads(self) -> bool:
        """Return whether what the app loads, it loads through a model cache."""
        return any(cache.loads for cache in self.caches)

    def publish(self) -> None:
        """Write the row as things are now."""
        held = self._slots.held
        working = [t for t in held if not t.waits]
        now = monotonic_s()
        row = RunnerRow(
            epoch=Epoch(self._epoch),
            slots=self._slots.count,
            hints=self._hints.known,
            executing=tuple(Executing(t.request, t.hint, t.since(now=now), t.step, t.steps) for t in held),
            models=self._models(),
            served=self._slots.served,
            loads=self._loads,
            beat_at=now,
            progress_at=max((self._progress_at, *(t.progress_at for t in held))),
            progress_known=bool(working) and all(t.step for t in working),
            hints_dropped=self._hints.overflow,
            device_bytes=reserved_bytes() if self._gpu else 0,
        )
        self._board.put_runner(self._runner, row)

    def started(self, ticket: Ticket) -> None:
        """Note that *ticket* holds a slot now."""
        self._progress_at = ticket.started_at
        self.publish()

    def released(self, ticket: Ticket, asked: Asked | None, *, loads: int) -> None:
        """Note that *ticket* has given its slot back, the hints after it, and the models it had loaded."""
        self.logbook.end(ticket.transcript)
        self._loads += loads
        self.changed(asked)
        exec_s, load_s = ticket.spent_s(knows_loads=self.knows_loads)
        self.events.emit(
            Released(self._epoch, ticket.request, exec_s, load_s, _tier(ticket), ticket.least_bytes)
        )

    def load_begins(self, hint: str) -> None:
        """Note that a load job has been taken."""
        self._loading.append(hint)

    def load_ended(self, order: LoadOrder, load_s: float, tier: str) -> None:
        """Note that a load job from *tier* is over; its model is on the board before the event is sent."""
        self._loading.remove(order.hint)
        self._loads += 1
        resident = {name for cache in self.caches for name in cache.resident}
        self._hints.presume(loaded=Hint(order.hint), evicted=set(order.evict) - resident)
        self.publish()
        self.events.emit(LoadEnded(self._epoch, order.hint, ok=True, load_s=load_s, tier=tier))

    def load_failed(self, order: LoadOrder, error: Exception) -> None:
        """Note that a load job is over, and has loaded nothing, because of *error*."""
        self._loading.remove(order.hint)
        self.publish()
        least = least_bytes(error, order.hint)
        ended = LoadEnded(self._epoch, order.hint, ok=False, load_s=0.0, least_bytes=least)
        if isinstance(error, RequestError):
            ended = replace(ended, error=error.detail, status=error.status, error_type=error.error_type)
        else:
            ended = replace(ended, error=said(error))
        self.events.emit(ended)

    def changed(self, asked: Asked | None) -> None:
        """Note that a model cache has changed, or that hints were asked for."""
        self._progress_at = monotonic_s()
        changed = asked is not None and self._hints.accept(asked)
        self.publish()
        if changed:
            self.events.emit(HintsChanged(self._epoch))

    def draining(self) -> None:
        """Tell the router that no new request is taken."""
        self.events.emit(Draining(self._epoch))

    def hello(self) -> Hello:
        """Return the first message of an event stream."""
        cache = self.cache
        total_bytes = 0 if cache is None else cache.total_bytes or 0
        return Hello(
            self._epoch,
            self._slots.count,
            [t.request for t in self._slots.held],
            gpu=self._gpu,
            loads=cache is not None,
            overlaps=cache is not None and cache.overlaps,
            models_max=0 if cache is None else cache.models_max,
            vram_bytes=total_bytes,
            joint=self.joint,
            run_bytes=total_bytes and total_bytes + _machine_bytes(),
            loading=list(self._loading),
            app_name=self.limits.app_name,
            start_timeout_s=self.limits.start_timeout_s,
            request_timeout_s=self.limits.request_timeout_s,
            retries=dict(self.limits.retries),
            retry_skips=list(self.limits.retry_skips),
        )

    @property
    def loads_now(self) -> bool:
        """Return whether a model is on its way in, so that how far it is is worth a row now and then."""
        return any(r.state == "loading" for cache in self.caches for r in cache.residents())

    def step_done(self, ticket: Ticket, picture: bytes | None) -> None:
        """Note that the app's thread has reported a step of *ticket*, with a *picture* of it or None; as often as it likes."""
        last = ticket.step == ticket.steps > 0
        if last or picture is not None or ticket.progress_at - ticket.told_at >= PROGRESS_PAUSE_S:
            ticket.told_at = ticket.progress_at
            stepped = Stepped(self._epoch, ticket.request, ticket.step, ticket.steps, as_text(picture))
            self.soon(self._stepped, ticket, stepped)

    def _stepped(self, ticket: Ticket, stepped: Stepped) -> None:
        if ticket.over.is_set():
            return  # its end has been told
        self.publish()
        if self.events.lag_bytes <= STEPS_LAG_BYTES_MAX:
            self.events.emit(stepped)

    def soon(self, call: Callable[..., None], *args: Any) -> None:
        """Call *call* on the event loop; from any thread."""
        self._loop.call_soon_threadsafe(call, *args)

    def _models(self) -> tuple[ModelRow, ...]:
        seen = [resident for cache in self.caches for resident in cache.residents()]
        # If the row is too long its last models are not told; that one is pinned the router must know.
        return tuple(map(_row, sorted(seen, key=lambda resident: not resident.pinned)))


def _row(seen: Resident) -> ModelRow:
    return ModelRow(
        seen.name,
        seen.state,
        seen.used_at,
        seen.load_s,
        tier=seen.tier,
        size_bytes=_size_bytes(seen),
        vram_bytes=seen.device_bytes,
        ram_bytes=seen.host_bytes,
        fraction=seen.loaded,
        pinned=seen.pinned,
        keep_until=seen.keep_until,
    )


def _size_bytes(seen: Resident) -> int:
    """Return what a model takes on the device; 0: that cannot be told while only some of its bytes are anywhere."""
    whole = seen.state == "ready" and seen.tier != "disk"
    return max(seen.device_bytes, seen.host_bytes) if whole else 0


def _tier(ticket: Ticket) -> str:
    """Return where *ticket*'s costliest load came from, as `Released` has it."""
    return {"ram": "ram", "join": JOINED}.get(ticket.cache or "", "disk")


def _machine_bytes() -> int:
    """Return the machine's memory: nobody can offload more than that, whatever else it is wanted for."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
