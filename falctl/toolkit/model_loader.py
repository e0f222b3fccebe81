"""
Bring a model to where it is wanted: one load however many ask, and a second try when memory does not suffice.

A load checks the name, makes room, constructs, reads the bytes into host memory and copies them to the device, as far
as each is needed. It holds `LOADING`, but for one that only reads bytes. When the device is full although there was
room by the numbers, everything idle leaves it and the step is tried once more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from typing import Final, Generic, Literal, TypeVar

from falctl.clock import monotonic_s
from falctl.core.activations import Drawing
from falctl.core.residency import Room, Verdict
from falctl.errors import HostMemoryFullError, ModelTooLargeError
from falctl.toolkit.cache_entry import Entry, Load
from falctl.toolkit.cache_hooks import WHOLE, Admitted, CacheHooks, CachePolicy
from falctl.toolkit.cancel import RequestCancelled
from falctl.toolkit.holdings import LOADING, Holdings
from falctl.toolkit.model_store import ModelStore
from falctl.toolkit.out_of_memory import runs_out_of_memory

M = TypeVar("M")

_HOST_WAIT_S: Final = 60.0
"""How long a load that only reads waits for those that move, to have them let go of host memory."""

_LOOK_S: Final = 0.05
"""How late a request that joins a load hears that it is cancelled."""

_CHOICES_MAX: Final = 3
"""How often a load begins anew because the room that it was made for has changed."""

_here = threading.local()


@contextmanager
def _moving() -> Iterator[None]:
    """Hold `LOADING` for a block; a lease inside of it, by an app's ``load``, finds out that this thread does."""
    with LOADING:
        outer, _here.loading = getattr(_here, "loading", False), True
        try:
            yield
        finally:
            _here.loading = outer


class ModelLoader(Generic[M]):
    """Loads what *holdings* claim. Thread-safe; blocks."""

    def __init__(
        self, store: ModelStore[M], holdings: Holdings[M], policy: CachePolicy, hooks: CacheHooks
    ) -> None:
        self._store = store
        self._holdings = holdings
        self._policy = policy
        self._hooks = hooks

    def get(
        self,
        name: str,
        *,
        to: Literal["vram", "ram"] = "vram",
        drawing: Drawing | None = None,
        first: Collection[str] = (),
    ) -> tuple[Entry, Verdict]:
        """Return the entry of *name*, leased, loaded, with room for *drawing*; raises what the load raised."""
        while True:
            entry, load, mine = self._holdings.claim(name, to)
            try:
                if load is None and not self._store.is_constructed(name):
                    load, mine = self._holdings.outdated(entry, to)  # its files have been replaced
                if load is not None:
                    self._fulfil(entry, load, drawing, mine=mine, first=first)
                verdict: Verdict = "hit" if load is None else load.verdict if mine else "join"
                if to == "ram" or entry.placed is not None:
                    moved = not mine and to == "vram" and self._fit(entry, drawing, first)
                    return entry, "ram" if moved else verdict
            except RequestCancelled:
                self._holdings.release(entry)
                if mine or self._hooks.cancelled().is_set():
                    raise
                # The request that was loading it was cancelled; ours was not.
            except BaseException:
                self._holdings.release(entry)
                raise
            else:
                self._holdings.release(entry)  # it was being loaded, but not to where we want it

    def adopt(self, name: str, model: M, put: Callable[[str, M], None]) -> Entry:
        """Take *model*, which the app has loaded, for *name*, and *put* it into the store; return it leased."""
        with LOADING:
            entry, load, _ = self._holdings.claim(name, "vram")
            try:
                if load is not None:
                    self._holdings.trim(incoming=1)
                put(name, model)
                self._holdings.made(entry, self._store.needs(name))
                self._holdings.place(entry, WHOLE, model)
            except BaseException:
                self._holdings.release(entry)  # the app's `unload` of another model may raise
                raise
            finally:
                if load is not None:
                    self._holdings.over(entry, load)
        self._hooks.changed()
        return entry

    def _fulfil(
        self, entry: Entry, load: Load, drawing: Drawing | None, *, mine: bool, first: Collection[str]
    ) -> None:
        if mine and load.to == "ram" and self._store.is_constructed(entry.name):
            self._perform(entry, load, drawing, first)
        elif mine or getattr(_here, "loading", False):
            # A load that leases another model must not wait for a thread that waits for its lock.
            with _moving():
                if not load.done.is_set() and load.thread in {None, threading.get_ident()}:
                    self._perform(entry, load, drawing, first)
        self._wait(load)
        if load.error is not None:
            raise load.error

    def _wait(self, load: Load) -> None:
        """Return when *load* is over; no longer than the request that waits for it is wanted."""
        cancelled = self._hooks.cancelled()
        while not load.done.wait(_LOOK_S):
            if cancelled.is_set():
                raise RequestCancelled

    def _perform(self, entry: Entry, load: Load, drawing: Drawing | None, first: Collection[str]) -> None:
        if load.thread is not None:
            msg = f"the load of {entry.name!r} leases {entry.name!r}"
            raise RuntimeError(msg)
        load.thread = threading.get_ident()
        try:
            self._load(entry, load, drawing, first)
        except BaseException as error:
            load.error = error
            raise
        finally:
            self._holdings.over(entry, load)
            self._hooks.changed()

    def _load(self, entry: Entry, load: Load, drawing: Drawing | None, first: Collection[str]) -> None:
        name = entry.name
        self._store.check(name)
        if load.to == "vram":
            self._make_place(name)
        for _ in range(_CHOICES_MAX):
            began_at = self._make(entry, load, drawing)
            # On its way to the device it can do without: where host memory is smaller, its bytes only pass through.
            self._with_host_room(name, lambda: self._fill(name), needed=load.to == "ram")
            if load.to == "ram" or self._place(entry, drawing, first):
                self._holdings.loaded(entry, load, seconds=monotonic_s() - began_at)
                return
        raise self.too_large(name, drawing, "the room for it changed again and again while it was loaded")

    def _make(self, entry: Entry, load: Load, drawing: Drawing | None) -> float:
        """Have the modules of *entry* stand, as they fit; return when that began."""
        name = entry.name
        if load.to == "vram" and (room := self._holdings.room(name)) is not None:
            # Better refused now than when its bytes have been read; and it may be made of other weights.
            self._admit(name, drawing, room)
        constructed = self._store.is_constructed(name)
        with nullcontext() if constructed else self._holdings.making(entry, self._store.needs(name)):
            self._hooks.changed()
            began_at = monotonic_s()
            if not constructed:
                self._with_host_room(name, lambda: self._twice(name, lambda: self._store.construct(name)))
                self._holdings.made(entry, self._store.needs(name))
        return began_at

    def _make_place(self, name: str) -> None:
        if pins := self._holdings.crowd(name):
            msg = (
                f"Model {name!r} has no room: {len(pins)} models may be loaded (cache.max_models), "
                f"and these are pinned: {', '.join(pins)}; unpin one"
            )
            raise ModelTooLargeError(msg)
        self._holdings.trim(incoming=1)

    def _fill(self, name: str) -> None:
        cancelled = self._hooks.cancelled()
        try:
            self._store.fill(name, cancelled)
        except Exception as error:
            if cancelled.is_set() and not isinstance(error, HostMemoryFullError):
                raise RequestCancelled from error
            raise

    def _with_host_room(self, name: str, act: Callable[[], None], *, needed: bool = True) -> None:
        """Do *act*; while host memory is full, have idle parts leave it and do *act* again, or do without it."""
        while True:
            try:
                act()
            except HostMemoryFullError as error:
                detail, lacking = str(error), error.lacking_bytes
            else:
                return
            if lacking is None:
                lacking = sum(p.nbytes for p in self._store.needs(name) if p.tier == "disk")
            if self._make_host_room(max(lacking, 1)):
                continue
            if needed:
                msg = f"Model {name!r} has no room in host memory: {detail}"
                raise ModelTooLargeError(msg)
            return

    def _make_host_room(self, lacking_bytes: int) -> bool:
        if not LOADING.acquire(timeout=_HOST_WAIT_S):
            return False
        try:
            return self._holdings.make_host_room(lacking_bytes)
        finally:
            LOADING.release()

    def _twice(self, name: str, act: Callable[[], None]) -> None:
        """Do *act*, and again after everything idle has left the device, if it had no room for it."""
        try:
            act()
        except Exception as error:
            if not runs_out_of_memory(error) or not self._holdings.idle(keep=name):
                raise
        else:
            return
        # Outside the `except`: the error held the frames of the call, and all that they had allocated.
        self._holdings.evict_idle(keep=name)
        act()

    def _place(self, entry: Entry, drawing: Drawing | None, first: Collection[str]) -> bool:
        """Put *entry* on the device; False: in the room that is there by now it is to be made of other weights."""
        for again in (False, True):
            if again:
                self._holdings.evict_idle(keep=entry.name)
            admitted = self._make_room(entry.name, drawing, first)
            if not self._store.is_constructed(entry.name):
                return False
            if self._try_place(entry, admitted):
                return True
        raise self.too_large(entry.name, drawing, "it ran out of memory although everything idle had left")

    def _try_place(self, entry: Entry, admitted: Admitted) -> bool:
        try:
            model = self._store.place(entry.name, admitted.how)
        except Exception as error:
            if self._holdings.room(entry.name) is None or not runs_out_of_memory(error):
                raise
            return False
        self._holdings.place(entry, admitted, model)
        return True

    def _make_room(self, name: str, drawing: Drawing | None, first: Collection[str]) -> Admitted:
        room = self._holdings.room(name)
        if room is None:
            return WHOLE
        admitted = self._admit(name, drawing, room)
        if not self._holdings.make_room(room.lacking(admitted.need_bytes), first=first):
            raise self.too_large(name, drawing)
        return admitted

    def _fit(self, entry: Entry, drawing: Drawing | None, first: Collection[str]) -> bool:
        """Make room for *drawing* on a model that is there; return whether it had to be placed anew for that."""
        room = self._holdings.room(entry.name)
        if room is None:
            return False
        admitted = self._admit(entry.name, drawing, room)
        stays = admitted.same_way(entry.placed)
        if stays and not room.lacking(admitted.need_bytes):
            return False
        with _moving():
            # Whoever else uses it wants it to stay as it is.
            load = None if stays else self._holdings.again(entry)
            if load is None:
                self._make_room(entry.name, drawing, first)
            else:
                self._perform(entry, load, drawing, first)
        return load is not None

    def _admit(self, name: str, drawing: Drawing | None, room: Room) -> Admitted:
        if self._policy.admit is not None:
            return self._policy.admit(name, drawing, room)
        need_bytes = self._need(name, drawing)
        if need_bytes > room.most_bytes:
            raise self.too_large(name, drawing)
        return Admitted("whole", need_bytes)

    def _need(self, name: str, drawing: Drawing | None) -> int:
        return sum(p.nbytes for p in self._store.needs(name)) + self._store.peak_bytes(name, drawing)

    def too_large(self, name: str, drawing: Drawing | None, why: str = "") -> ModelTooLargeError:
        """Return the error that says, with numbers, that *name* has no room for *drawing*."""
        room = self._holdings.room(name)
        told = why if room is None else f"{room.told(self._need(name, drawing))}{why and '; '}{why}"
        return ModelTooLargeError(f"Model {name!r} has no room: {told}")
