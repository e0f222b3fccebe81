"""
The steps of a load: check the name, make room, construct, read the bytes and copy them to the device as they are read.

Each as far as it is needed. When the device is full although there was room by the numbers, everything idle leaves it
and the step is tried once more; if others draw there, the load waits until they have ended (`RoomTakenError`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Final, Generic, TypeVar

from falctl.clock import monotonic_s
from falctl.core.fit import How
from falctl.errors import FilesChangedError, HostMemoryFullError, ModelTooLargeError
from falctl.toolkit.cache_entry import Claim, Load
from falctl.toolkit.cache_hooks import WHOLE, CacheHooks, CachePolicy
from falctl.toolkit.holdings import Holdings
from falctl.toolkit.leaving import Leaving
from falctl.toolkit.model_store import ModelStore
from falctl.toolkit.moving import LOADING, moving, taken
from falctl.toolkit.out_of_memory import runs_out_of_memory
from falctl.toolkit.turns import Asked, RoomTakenError, Turns

M = TypeVar("M")
T = TypeVar("T")

_HOST_WAIT_S: Final = 60.0
"""How long a load that only reads waits for those that move, to have them let go of host memory."""


class LoadSteps(Generic[M]):
    """Performs loads that were claimed. `LOADING` is held by who calls, but for `read`."""

    def __init__(  # noqa: PLR0913 - the parts of a cache
        self,
        store: ModelStore[M],
        holdings: Holdings[M],
        *,
        leaving: Leaving[M],
        turns: Turns[M],
        policy: CachePolicy,
        hooks: CacheHooks,
    ) -> None:
        self._store = store
        self._holdings = holdings
        self._leaving = leaving
        self._turns = turns
        self._policy = policy
        self._hooks = hooks

    def load(self, claim: Claim, load: Load, asked: Asked) -> None:
        """Perform *load*, once more if the files were replaced meanwhile."""
        try:
            self._load(claim, load, asked)
        except FilesChangedError:
            pass
        else:
            return
        self._load(claim, load, asked)

    def read(self, claim: Claim, load: Load, asked: Asked) -> None:
        """Read what stands into host memory, beside whatever moves; as it is now, if it was replaced meanwhile."""
        name = asked.name
        try:
            self._store.check(name)
            self._hooks.changed()
            began_at = monotonic_s()
            self._fill(name)
        except FilesChangedError:
            replaced = True
        else:
            self._holdings.loaded(claim.entry, load, seconds=monotonic_s() - began_at)
            replaced = not self._store.is_constructed(name)
        if replaced:
            with moving(self._hooks.cancelled()):
                self._load(claim, load, asked)

    def fits(self, claim: Claim, asked: Asked) -> bool:
        """Make room for a drawing on a model that is there; return False if it must be placed anew for that."""
        if not claim.admitted.same_way(claim.entry.placed):
            return False
        self._policy.arrange(asked.name, asked.drawing, claim.admitted)
        room = self._holdings.room(claim.use)
        if room is not None and room.lacking(claim.use.need_bytes):
            with moving(self._hooks.cancelled()):
                self.make_room(claim, asked)
        return True

    def make_room(self, claim: Claim, asked: Asked) -> None:
        """Have leave what must for what was granted. Raises ModelTooLargeError."""
        room = self._holdings.room(claim.use)
        if room is None:
            return
        if not self._leaving.make_room(room.lacking(claim.use.need_bytes), first=asked.first):
            raise self._no_room(claim, asked, "")

    def _no_room(self, claim: Claim, asked: Asked, why: str) -> Exception:
        """Return what to raise when there is none although it was granted: others may have taken more than they said."""
        if not asked.alone and not self._turns.is_alone(claim):
            return RoomTakenError(alone=True)
        return self._turns.too_large(asked, self._holdings.room(claim.use), why)

    def _load(self, claim: Claim, load: Load, asked: Asked) -> None:
        name = asked.name
        load.how = claim.admitted.how
        self._store.check(name)
        if load.to == "vram":
            self._make_place(name)
            # It may have been admitted with other weights than it stands with.
            if claim.admitted is not WHOLE:
                self._policy.arrange(name, asked.drawing, claim.admitted)
        constructed = self._store.is_constructed(name)
        with nullcontext() if constructed else self._leaving.making(claim.entry, self._store.needs(name)):
            self._hooks.changed()
            began_at = monotonic_s()
            if not constructed:
                self._with_host_room(name, lambda: self._twice(name, lambda: self._construct(name)))
                self._holdings.made(claim.entry, self._store.needs(name))
        if load.to == "vram":
            self._place(claim, load, asked)
        else:
            self._fill(name)
        self._holdings.loaded(claim.entry, load, seconds=monotonic_s() - began_at)

    def _make_place(self, name: str) -> None:
        if pins := self._holdings.crowd(name):
            msg = (
                f"Model {name!r} has no room: {len(pins)} models may be loaded (cache.max_models), "
                f"and these are pinned: {', '.join(pins)}; unpin one"
            )
            raise ModelTooLargeError(msg)
        self._leaving.trim(incoming=1)

    def _construct(self, name: str) -> None:
        self._store.construct(name, self._hooks.cancelled())

    def _fill(self, name: str, *, without: Callable[[], None] | None = None) -> None:
        self._with_host_room(name, lambda: self._store.fill(name, self._hooks.cancelled()), without=without)

    def _bring(self, name: str, how: How) -> M:
        """
        Have the store place *name*, from wherever it is.

        On its way to the device it can do without host memory: where that has no room, its bytes only pass through.
        """
        cancelled = self._hooks.cancelled()
        if how != "whole":
            self._fill(name, without=lambda: None)  # from there its parts come while it runs
        return self._with_host_room(
            name,
            lambda: self._store.place(name, how, filling=True, cancelled=cancelled),
            without=lambda: self._store.place(name, how, cancelled=cancelled),
        )

    def _with_host_room(
        self, name: str, act: Callable[[], T], *, without: Callable[[], T] | None = None
    ) -> T:
        """Do *act*; while host memory is full, have idle parts leave it and do *act* again, or *without* instead."""
        while True:
            try:
                return act()
            except HostMemoryFullError as error:
                detail, lacking = str(error), error.lacking_bytes
            if lacking is None:
                lacking = sum(p.nbytes for p in self._store.needs(name) if p.tier == "disk")
            if self._make_host_room(max(lacking, 1)):
                continue
            if without is not None:
                return without()
            msg = f"Model {name!r} has no room in host memory: {detail}"
            raise ModelTooLargeError(msg)

    def _make_host_room(self, lacking_bytes: int) -> bool:
        if not taken(self._hooks.cancelled(), within_s=_HOST_WAIT_S):
            return False
        try:
            return self._leaving.make_host_room(lacking_bytes)
        finally:
            LOADING.release()

    def _twice(self, name: str, act: Callable[[], None]) -> None:
        """Do *act*, and again after everything idle has left the device, if it had no room for it."""
        try:
            act()
        except Exception as error:
            if not runs_out_of_memory(error) or not self._leaving.idle(keep=name):
                raise
        else:
            return
        # Outside the `except`: the error held the frames of the call, and all that they had allocated.
        self._leaving.evict_idle(keep=name)
        act()

    def _place(self, claim: Claim, load: Load, asked: Asked) -> None:
        if self._try_place(claim, load, asked):
            return
        self._leaving.evict_idle(keep=asked.name)
        if not self._try_place(claim, load, asked):
            raise self._no_room(claim, asked, "it ran out of memory although everything idle had left")

    def _try_place(self, claim: Claim, load: Load, asked: Asked) -> bool:
        counted = self._store.free_bytes is not None
        if counted:
            self._turns.admit_anew(claim, asked)
            self.make_room(claim, asked)
            self._policy.arrange(asked.name, asked.drawing, claim.admitted)
            load.how = claim.admitted.how
            if not self._store.is_constructed(asked.name):
                raise RoomTakenError(alone=asked.alone)  # in what is left it runs with other weights only
        try:
            model = self._bring(asked.name, claim.admitted.how)
        except Exception as error:
            if not counted or not runs_out_of_memory(error):
                raise
            return False
        self._holdings.place(claim.entry, claim.admitted, model)
        return True
