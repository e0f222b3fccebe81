"""
The models that a cache knows, who holds them, and what leaves: the state behind a `ModelCache`.

`lock` guards the entries, and is held for moments; `LOADING` (`falctl.toolkit.moving`) is held by whoever constructs a
model or moves parts. What leaves is decided and marked under `lock`, then moved under `LOADING`: whoever wants a marked
model waits for `LOADING` like for any load.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Generic, Literal, TypeVar

from falctl.clock import monotonic_s
from falctl.core.keep_alive import due
from falctl.core.residency import (
    Held,
    Part,
    Plan,
    Resident,
    Room,
    Tier,
    tier_of,
    victims,
)
from falctl.core.sizes import size_text
from falctl.core.skeletons import Skeleton, outlived
from falctl.core.turns import Supply, Use, room_beside
from falctl.errors import ModelTooLargeError
from falctl.toolkit.cache_entry import Claim, Entry, Load
from falctl.toolkit.cache_hooks import Admitted, CachePolicy
from falctl.toolkit.model_store import ModelStore

M = TypeVar("M")


class Holdings(Generic[M]):
    """Thread-safe; those that move want `LOADING` held."""

    def __init__(self, store: ModelStore[M], policy: CachePolicy) -> None:
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        """Told of every lease that ended, and of whatever else may let one begin."""
        self._pinned: dict[str, tuple[Part, ...]] = {}
        self._store = store
        self._policy = policy
        self._entries: dict[str, Entry] = {}  # least recently used first
        self._clock = 0.0
        self.claims = 0
        """Leases that were granted since the start."""

    # With `lock` held

    def claim(self, use: Use, to: Literal["vram", "ram"]) -> Claim:
        """Grant *use*; return its model, the load of that if it is not where it is wanted, and who is to load it."""
        now = monotonic_s()
        entry = self._entries.pop(use.name, None) or Entry(use.name, now)
        self._entries[use.name] = entry
        entry.lease(use, now=now)
        entry.clock = self._clock
        self.claims += 1
        if entry.load is not None:
            return Claim(entry, use, entry.load, mine=False)
        warm = self._tier(entry) != "disk"
        if entry.placed is not None or (to == "ram" and warm):
            return Claim(entry, use)
        entry.load = Load(to, "ram" if warm else "disk")
        return Claim(entry, use, entry.load, mine=True)

    def uses(self, *, but: Use | None = None) -> tuple[Use, ...]:
        """Return every lease that is granted, *but* this very one."""
        return tuple(use for entry in self._entries.values() for use in entry.leases if use is not but)

    def exchange(self, claim: Claim, use: Use) -> None:
        """Have *claim* be for *use* from now on."""
        claim.entry.leases = [use if one is claim.use else one for one in claim.entry.leases]
        claim.use = use

    def held(self) -> tuple[Held, ...]:
        """Return every model as decisions see it."""
        there = self._store.parts()
        return tuple(
            entry.held(_now(entry.parts, there), pinned=name in self._pinned)
            for name, entry in self._entries.items()
        )

    def surplus(self, incoming: int) -> tuple[str, ...]:
        """Return the models that leave the device so that *incoming* more make no more than may be."""
        placed = [r for r in self._seen() if self._entries[r.name].placed is not None]
        return victims(placed, models_max=self._policy.models_max, incoming=incoming)

    def supply(self) -> Supply:
        """Return the device as it is; for stores that count bytes."""
        free, total = self._store.free_bytes, self._store.total_bytes
        assert free is not None, "it counts bytes"
        assert total is not None, "it counts bytes"
        there = self._store.parts()
        reserve, drawn = self._policy.reserve_bytes(), self._store.drawn_bytes
        return Supply(self.held(), there, free, total, reserve_bytes=reserve, drawn_bytes=drawn)

    # Without it

    def marked(self, decide: Callable[[tuple[Held, ...]], Plan | None]) -> Plan | None:
        """Return what *decide* would have leave; the models that have it are not ready to run any more."""
        with self.lock:
            plan = decide(self.held())
            if plan is not None:
                self._clock = max(self._clock, plan.clock)
                self._unplace(frozenset(plan.keys))
            return plan

    def forget_gone(self) -> None:
        """Forget the models that the store has no more."""
        with self.changed:
            self._forget_gone()
            self.changed.notify_all()

    def forget(self, name: str) -> bool:
        """Forget *name*, which the store still has; False: it is not there, or must stay."""
        with self.lock:
            entry = self._entries.get(name)
            if entry is None or entry.leases or name in self._pinned:
                return False
            del self._entries[name]
            return True

    def unplaced(self, name: str) -> bool:
        """Note, with `lock` held, that *name* is not ready to run any more; return whether it was."""
        entry = self._entries[name]
        there, entry.placed, entry.model = entry.placed, None, None
        return there is not None

    def is_placed(self, name: str) -> bool:
        """Return, with `lock` held, whether *name* is ready to run."""
        return self._entries[name].placed is not None

    def outlived(self) -> tuple[str, ...]:
        """Return the models without bytes that are one too many; none that is leased, pinned, loading or placed."""
        with self.lock:
            there = self._store.parts()
            found = [
                Skeleton(name, entry.used_at, self._store.module_bytes(name))
                for name, entry in self._entries.items()
                if entry.constructed and not (entry.leases or entry.load or entry.placed)
                if name not in self._pinned and tier_of(_now(entry.parts, there)) == "disk"
            ]
        return outlived(found, number_max=self._policy.skeletons_max)

    def again(self, entry: Entry) -> Load | None:
        """Return a load that places *entry* anew; None: others than the caller use it."""
        with self.lock:
            if len(entry.leases) > 1 or entry.load is not None:
                return None
            entry.placed, entry.model = None, None  # also if it fails: who knows then how it is
            entry.load = Load("vram", "ram")
            return entry.load

    def outdated(self, claim: Claim, to: Literal["vram", "ram"]) -> None:
        """Note that another model has the name of *claim*'s now, and who is to load it."""
        entry = claim.entry
        with self.lock:
            entry.placed, entry.model = None, None
            claim.mine = entry.load is None
            claim.load = entry.load = entry.load or Load(to, "disk")

    def made(self, entry: Entry, parts: tuple[Part, ...], *, stands: bool = True) -> None:
        """Note what *entry* is made of, and that its modules stand; or will, if all goes well."""
        with self.lock:
            entry.parts, entry.constructed = parts, stands
            if not stands and entry.load is not None:
                self._note_tiers(entry.load, parts)

    def place(self, entry: Entry, how: Admitted, model: M) -> None:
        """Note that *entry* is on the device, ready to run as *model*."""
        with self.lock:
            entry.placed, entry.model = how, model

    def loaded(self, entry: Entry, load: Load, *, seconds: float) -> None:
        """Note what *load* took."""
        with self.lock:
            entry.load_s = seconds
            entry.costs[load.verdict] = seconds

    def begin(self, entry: Entry, load: Load) -> bool:
        """Note that this thread performs *load*; False: another does, or it has been."""
        with self.lock:
            if load.thread is not None:
                return False
            load.thread = threading.get_ident()
            self._note_tiers(load, entry.parts if entry.constructed else ())
            return True

    def over(self, entry: Entry, load: Load) -> None:
        """Let those go on who wait for *load*."""
        with self.changed:
            entry.load = None
            self.changed.notify_all()
        load.done.set()

    def release(self, claim: Claim) -> None:
        """Give *claim* back."""
        entry = claim.entry
        keep_alive_s = self._policy.keep_alive_s(entry.name)
        with self.changed:
            entry.leases = [use for use in entry.leases if use is not claim.use]
            self.changed.notify_all()
            entry.used_at = monotonic_s()
            entry.keep_alive_s = None if keep_alive_s is None or keep_alive_s < 0 else keep_alive_s
            self._forget_gone()

    def pin(self, name: str) -> None:
        """Keep *name* from now on. Raises ModelTooLargeError: the pinned models would leave no room."""
        total, reserve, most = self._store.total_bytes, self._policy.reserve_bytes(), self._policy.models_max
        needed = self._store.needs(name)  # outside the lock: it may read headers of files
        with self.lock:
            pins = {**self._pinned, name: needed}
            size = sum({p.key: p.nbytes for parts in pins.values() for p in parts}.values())
            if total is not None and size > total - reserve:
                raise _no_room_for_pins(pins, f"need {size_text(size)} of {size_text(total - reserve)}")
            if most and len(pins) > most:
                raise _no_room_for_pins(pins, f"are more than may be loaded (cache.max_models = {most})")
            self._pinned = pins

    def unpin(self, name: str) -> bool:
        """Keep *name* no longer; return whether it was pinned."""
        with self.changed:
            self.changed.notify_all()
            return self._pinned.pop(name, None) is not None

    def pins(self) -> tuple[str, ...]:
        """Return what is pinned, in the order of the names."""
        with self.lock:
            return tuple(sorted(self._pinned))

    def names(self) -> tuple[str, ...]:
        """Return the models that are ready to run, most recently used first."""
        with self.lock:
            return tuple(e.name for e in reversed(self._entries.values()) if e.placed is not None)

    def residents(self) -> tuple[Resident, ...]:
        """Return every model, loading ones too, most recently used first."""
        with self.lock:
            return tuple(reversed(tuple(self._seen())))

    def tier(self, name: str) -> Tier | None:
        """Return the tier of *name*; None: it is not known, or its modules do not stand."""
        with self.lock:
            entry = self._entries.get(name)
            return self._tier(entry) if entry is not None and entry.constructed else None

    def room(self, use: Use) -> Room | None:
        """Return what the device can give to *use* beside the others; None: this store counts no bytes."""
        if self._store.free_bytes is None:
            return None
        with self.lock:
            return room_beside(use, self.uses(but=use), self.supply())

    def alone(self) -> Callable[[], bool]:
        """Return what tells whether, since now, there was one lease at most."""
        with self.lock:
            before, one = self.claims, len(self.uses()) <= 1
        return lambda: one and self.claims == before

    def due_at(self) -> float | None:
        """Return when `tend` has something to do; None: as things are, never."""
        with self.lock:
            now = monotonic_s()
            found = due(self.held(), now=now)
            return now if found.evict or found.drop or self.surplus(0) else found.next_at

    def stays(self, name: str) -> bool:
        """Return whether *name* may not leave now: it is leased or pinned, or not there."""
        with self.lock:
            entry = self._entries.get(name)
            return entry is None or bool(entry.leases) or name in self._pinned

    def crowd(self, name: str) -> tuple[str, ...]:
        """Return the pinned models that leave no place for *name* where models are counted; () if there is one."""
        with self.lock:
            there = tuple(n for n, e in self._entries.items() if n in self._pinned and e.placed is not None)
        full = self._policy.models_max and len(there) >= self._policy.models_max
        return there if full and name not in there else ()

    def _unplace(self, keys: frozenset[str]) -> None:
        for entry in self._entries.values():
            if any(p.key in keys for p in entry.parts):
                entry.placed, entry.model = None, None

    def _forget_gone(self) -> None:
        there = self._store.parts()
        for name, entry in tuple(self._entries.items()):
            entry.constructed = entry.constructed and all(p.key in there for p in entry.parts)
            if not (entry.constructed or entry.leases):
                del self._entries[name]

    def _tier(self, entry: Entry) -> Tier:
        return tier_of(_now(entry.parts, self._store.parts())) if entry.constructed else "disk"

    def _seen(self) -> Iterator[Resident]:
        there = self._store.parts()
        moved = self._store.moved()
        for name, entry in self._entries.items():
            yield entry.seen(_now(entry.parts, there), pinned=name in self._pinned, moved=moved)

    def _note_tiers(self, load: Load, parts: Iterable[Part]) -> None:
        load.begun = {part.key: part.tier for part in _now(parts, self._store.parts())}


def _now(parts: Iterable[Part], there: Mapping[str, Part]) -> tuple[Part, ...]:
    """Return *parts* as they are now: *there*, or only on the disk."""
    return tuple(there.get(p.key) or replace(p, tier="disk", host=False) for p in parts)


def _no_room_for_pins(pins: Iterable[str], why: str) -> ModelTooLargeError:
    return ModelTooLargeError(f"the pinned models {', '.join(sorted(pins))} {why}; unpin one")
