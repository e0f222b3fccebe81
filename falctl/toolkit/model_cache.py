"""
The models that a runner's requests share: leased for the block that uses them, loaded once however many wait.

A cache decides and a store acts (`falctl.toolkit.model_store`). What leaves to make room, and when, is decided by
`falctl.core.residency` and `falctl.core.keep_alive`; who holds what is in `falctl.toolkit.holdings`, and how a model
gets to where it is wanted in `falctl.toolkit.model_loader`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, Generic, Literal, TypeVar, cast

from falctl.clock import monotonic_s
from falctl.core.activations import Drawing
from falctl.core.residency import Resident, Tier
from falctl.toolkit.cache_entry import Claim
from falctl.toolkit.cache_hooks import NO_HOOKS, NO_POLICY, CacheHooks, CachePolicy, OutOfMemory
from falctl.toolkit.holdings import Holdings
from falctl.toolkit.lease import Lease, refuse_on_a_loop
from falctl.toolkit.leaving import Leaving
from falctl.toolkit.model_loader import ModelLoader
from falctl.toolkit.model_store import ModelStore
from falctl.toolkit.moving import LOADING
from falctl.toolkit.opaque_store import OpaqueStore
from falctl.toolkit.out_of_memory import runs_out_of_memory
from falctl.toolkit.turns import Asked

_ATTEMPTS_MAX: Final = 10
"""Of a call that runs out of memory, whatever the policy says."""

M = TypeVar("M")
T = TypeVar("T")


class ModelCache(Generic[M]):
    """Models by name over *store*; made by ``self.runner.model_cache(load=...)``. Thread-safe."""

    def __init__(
        self,
        store: ModelStore[M],
        *,
        overlaps: bool = False,
        policy: CachePolicy = NO_POLICY,
        hooks: CacheHooks = NO_HOOKS,
    ) -> None:
        self.models_max = policy.models_max
        self.overlaps = overlaps
        """Whether any load may run beside a request: it only moves bytes, it constructs nothing."""
        self.total_bytes = store.total_bytes
        """What the device had for models when this was made; None: bytes are not counted. No call of the driver."""
        self._store = store
        self._policy = policy
        self._hooks = hooks
        self._holdings = Holdings(store, policy)
        self._leaving = Leaving(store, self._holdings)
        self._loader = ModelLoader(store, self._holdings, self._leaving, policy=policy, hooks=hooks)

    @property
    def loads(self) -> bool:
        """Return whether it can load a model by its name; it cannot if the app only puts models in."""
        return not isinstance(self._store, OpaqueStore) or self._store.loads

    @property
    def resident(self) -> tuple[str, ...]:
        """Return the names of the models that are ready to run, most recently used first."""
        return self._holdings.names()

    def residents(self) -> tuple[Resident, ...]:
        """Return every model, loading ones and those off the device too, most recently used first."""
        return self._holdings.residents()

    def tier(self, name: str) -> Tier | None:
        """Return the lowest tier that a part of *name* is in; None: its modules do not stand."""
        return self._holdings.tier(name)

    def may_overlap(self, name: str, *, tier: Literal["vram", "ram"] = "vram") -> bool:
        """Return whether a load of *name* to *tier* may run beside a request, on another thread."""
        return self.overlaps or (tier == "ram" and self._holdings.tier(name) is not None)

    # Leases

    def lease(self, name: str, drawing: Drawing | None = None) -> Lease[M]:
        """
        Return a block that holds the model *name*, loaded first if need be, with room for *drawing* beside it.

        ``with`` blocks while it loads, and raises RuntimeError on an event loop, where ``async with`` waits for
        a thread instead. Raises whatever the load raised, to every lease that waited for it, and a 507
        (`ModelTooLargeError`) where there can be no room. *drawing* None: what the model usually draws. Where others
        draw in the room that it needs it waits until they have ended.
        """
        return self._lease(self._asked(name, drawing))

    def run(self, name: str, call: Callable[[M], T], drawing: Drawing | None = None) -> T:
        """
        Return ``call(model)`` under a lease; blocks.

        When the call runs out of the device's memory every idle model leaves, and it is called again if
        `CachePolicy.recover` says so. Raises as `lease`, and what *call* raises.
        """
        attempt, asked = 0, self._asked(name, drawing)
        while True:
            with self._lease(asked) as model:
                try:
                    with self._policy.around(name, drawing, self._holdings.alone()):
                        return call(model)
                except Exception as error:
                    if not runs_out_of_memory(error):
                        raise
                    detail = str(error)
            # Outside the `except`: the error held the frames of the call, and all that they had allocated.
            attempt += 1
            asked = replace(asked, alone=True)  # what others drew may have had the room
            self.evict_others(keep=name)
            answer = self._policy.recover(OutOfMemory(name, drawing, attempt, detail))
            if answer == "raise" or attempt >= _ATTEMPTS_MAX:
                raise self._loader.too_large(asked, f"ran out of memory ({detail})")

    def __getitem__(self, name: str) -> M:
        """
        Return the model *name*, loaded first if need be; it is leased until the current request ends.

        Raises as `lease`; KeyError where nothing loads; RuntimeError outside a request and on an event loop.
        """
        refuse_on_a_loop("use `async with models.lease(name)`")
        kept = self._hooks.kept()
        if kept is None:
            msg = (
                "models[name] holds the model until the current request ends, and none is served here: "
                "use `with models.lease(name)`"
            )
            raise RuntimeError(msg)
        key = (id(self), name)
        if key not in kept:
            kept[key] = self._take(self._asked(name, None))
        return cast("M", kept[key][0])

    def __setitem__(self, name: str, model: M) -> None:
        """
        Take *model*, which the app has loaded itself, for *name*; leased until the current request ends, if any.

        Raises TypeError where models are loaded by name alone, RuntimeError on an event loop.
        """
        refuse_on_a_loop("do it in a sync method")
        if not isinstance(self._store, OpaqueStore):
            msg = "this cache loads its models itself: `models[name]` and `models.lease(name)` do"
            raise TypeError(msg)
        claim = self._loader.adopt(self._asked(name, None), model, self._store.put)
        kept = self._hooks.kept()
        if kept is None or (id(self), name) in kept:
            self._give_back(claim)
        if kept is not None:
            _, give_back = kept.get((id(self), name), (None, partial(self._give_back, claim)))
            kept[id(self), name] = model, give_back

    def __contains__(self, name: object) -> bool:
        return name in self.resident

    def __iter__(self) -> Iterator[str]:
        return iter(self.resident)

    def __len__(self) -> int:
        return len(self.resident)

    def keys(self) -> tuple[str, ...]:
        """Return `resident`."""
        return self.resident

    # What a person or the router says

    def load(self, name: str, tier: Literal["vram", "ram"] = "vram", *, evict: Sequence[str] = ()) -> float:
        """
        Load *name* into *tier* ahead of any request; return the seconds that took, 0 if it was there.

        Blocks; raises as `lease`. *evict* are to leave first: all of them where no bytes are counted, else as
        many as must. One that is leased or pinned stays; all do if the name does not pass the store's check.
        """
        refuse_on_a_loop("do it in a sync method")
        self._store.check(name)
        if self._store.free_bytes is None:
            for victim in evict:
                self.evict(victim)
        began_at = monotonic_s()
        holder = self._hooks.holder()
        # Whoever loads ahead of any request ends soon, too.
        asked = Asked(name, object() if holder is None else holder, to=tier, first=frozenset(evict))
        claim, verdict = self._loader.get(asked)
        self._give_back(claim)
        return 0.0 if verdict == "hit" else monotonic_s() - began_at

    def evict(self, name: str, tier: Tier = "vram") -> bool:
        """
        Have *name* leave *tier* and what is above it ("disk": its modules go, too); blocks.

        What other models use stays. False: it was not there, or is leased or pinned.
        """
        if self._holdings.stays(name):
            return False
        with LOADING:
            if tier == "disk":
                left = self._leaving.forget(name)
            else:
                left = self._leaving.evict(name)
                left = (tier == "ram" and self._leaving.drop(name)) or left
        if left:
            self._hooks.changed()
        return left

    def pin(self, name: str) -> None:
        """
        Keep *name* where it is, and wherever it gets, until `unpin`; loads nothing.

        Raises what the store's check raises, and `ModelTooLargeError` if the pinned models would leave no room.
        """
        self._store.check(name)
        self._holdings.pin(name)
        self._hooks.changed()

    def unpin(self, name: str) -> bool:
        """Let *name* leave again; False: it was not pinned."""
        pinned = self._holdings.unpin(name)
        if pinned:
            self._hooks.changed()
            self._hooks.idle()
        return pinned

    @property
    def pinned(self) -> tuple[str, ...]:
        """Return the pinned names, whether or not anything of them is loaded."""
        return self._holdings.pins()

    # What the host does from time to time

    def evict_others(self, *, keep: str) -> None:
        """Have everything leave the device that nobody uses or has pinned, but *keep*; blocks."""
        with LOADING:
            left = self._leaving.evict_idle(keep=keep)
        if left:
            self._hooks.changed()

    def due_at(self) -> float | None:
        """Return when `tend` has something to do, on `monotonic_s`'s clock; None: as things are, never."""
        return self._holdings.due_at()

    def tend(self) -> float | None:
        """Have leave what has idled for too long; blocks; return `due_at` after it. Raises what ``unload`` raises."""
        with LOADING:
            left = [self._leaving.tend(), self._leaving.trim(incoming=0)]
        if any(left):
            self._hooks.changed()
        return self._holdings.due_at()

    def give_way(self, lacking_bytes: int) -> bool:
        """
        Have *lacking_bytes* of idle parts leave the device, all of them if there are not so many; blocks.

        For others who need it; return whether anything left. Where no bytes are counted, one model leaves.
        """
        with LOADING:
            left = self._leave(lacking_bytes)
        if left:
            self._hooks.changed()
        return left

    def _leave(self, lacking_bytes: int) -> bool:
        if self._store.free_bytes is None:
            return self._leaving.evict_oldest()
        before = self._leaving.idle_bytes()
        if not self._leaving.make_room(lacking_bytes):
            self._leaving.evict_idle()
        return self._leaving.idle_bytes() < before

    def _asked(self, name: str, drawing: Drawing | None) -> Asked:
        return Asked(name, self._hooks.holder(), drawing=drawing)

    def _lease(self, asked: Asked) -> Lease[M]:
        return Lease(partial(self._take, asked), self._hooks.run)

    def _take(self, asked: Asked) -> tuple[M, Callable[[], None]]:
        asked_at = monotonic_s()
        claim, verdict = self._loader.get(asked)
        try:
            self._hooks.leased(asked.name, verdict, 0.0 if verdict == "hit" else monotonic_s() - asked_at)
        except BaseException:
            self._give_back(claim)
            raise
        return cast("M", claim.entry.model), partial(self._give_back, claim)

    def _give_back(self, claim: Claim) -> None:
        self._holdings.release(claim)
        due_at = self._holdings.due_at()
        # A load that is under way is not waited for: `tend` comes again.
        if due_at is not None and due_at <= monotonic_s() and LOADING.acquire(blocking=False):
            try:
                self.tend()
            finally:
                LOADING.release()
        self._hooks.idle()
