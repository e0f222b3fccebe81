"""
The models that a cache knows, who holds them, and what leaves: the state behind a `ModelCache`.

`lock` guards the entries, and is held for moments; `LOADING` is held by whoever constructs a model or moves parts, in
all of this process, because diffusers and accelerate change global state of the process while they construct a model,
and fail silently when two do so at once. What leaves is decided and marked under `lock`, then moved under `LOADING`:
whoever wants a marked model waits for `LOADING` like for any load.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Final, Generic, Literal, TypeVar

from falctl.clock import monotonic_s
from falctl.core.keep_alive import due
from falctl.core.residency import (
    Held,
    Part,
    Plan,
    Resident,
    Room,
    Tier,
    loose,
    make_room,
    room_for,
    tier_of,
    victims,
)
from falctl.core.sizes import size_text
from falctl.errors import ModelTooLargeError
from falctl.toolkit.cache_entry import Entry, Load
from falctl.toolkit.cache_hooks import Admitted, CachePolicy
from falctl.toolkit.model_store import ModelStore

M = TypeVar("M")

LOADING: Final = threading.RLock()


class Holdings(Generic[M]):
    """Thread-safe; those that move want `LOADING` held."""

    def __init__(self, store: ModelStore[M], policy: CachePolicy) -> None:
        self.lock = threading.Lock()
        self._pinned: dict[str, tuple[Part, ...]] = {}
        self._store = store
        self._policy = policy
        self._entries: dict[str, Entry] = {}  # least recently used first
        self._clock = 0.0

    def claim(self, name: str, to: Literal["vram", "ram"]) -> tuple[Entry, Load | None, bool]:
        """Lease *name*; return it, its load if it is not where it is wanted, and whether the caller is to load it."""
        with self.lock:
            now = monotonic_s()
            entry = self._entries.pop(name, None) or Entry(name, now)
            self._entries[name] = entry
            entry.lease(now=now)
            entry.clock = self._clock
            if entry.load is not None:
                return entry, entry.load, False
            warm = self._tier(entry) != "disk"
            if entry.placed is not None or (to == "ram" and warm):
                return entry, None, False
            entry.load = Load(to, "ram" if warm else "disk")
            return entry, entry.load, True

    def again(self, entry: Entry) -> Load | None:
        """Return a load that places *entry* anew; None: others than the caller use it."""
        with self.lock:
            if entry.leases > 1 or entry.load is not None:
                return None
            entry.placed, entry.model = None, None  # also if it fails: who knows then how it is
            entry.load = Load("vram", "ram")
            return entry.load

    def outdated(self, entry: Entry, to: Literal["vram", "ram"]) -> tuple[Load, bool]:
        """Note that another model has the name of *entry* now; return its load, and whether the caller is to load it."""
        with self.lock:
            entry.placed, entry.model = None, None
            mine = entry.load is None
            entry.load = entry.load or Load(to, "disk")
            return entry.load, mine

    @contextmanager
    def making(self, entry: Entry, parts: tuple[Part, ...]) -> Iterator[None]:
        """
        Note for a block, which ends with `made`, that *entry* will be made of *parts*, as far as that is known.

        What it was made of before its files were replaced leaves the device, unless it is used. If the block fails,
        that is what it is made of as before: whoever makes room has to know who has those bytes.
        """
        self._evict(lambda held: self._outdated_parts(entry, {p.key for p in parts}, held))
        with self.lock:
            before = entry.parts, entry.constructed
            entry.parts, entry.constructed = parts, False
        try:
            yield
        except BaseException:
            with self.lock:
                entry.parts, entry.constructed = before
            raise

    def made(self, entry: Entry, parts: tuple[Part, ...]) -> None:
        """Note that the modules of *entry* stand, and what they are made of."""
        with self.lock:
            entry.parts, entry.constructed = parts, True

    def place(self, entry: Entry, how: Admitted, model: M) -> None:
        """Note that *entry* is on the device, ready to run as *model*."""
        with self.lock:
            entry.placed, entry.model = how, model

    def loaded(self, entry: Entry, load: Load, *, seconds: float) -> None:
        """Note what *load* took."""
        with self.lock:
            entry.load_s = seconds
            entry.costs[load.verdict] = seconds

    def over(self, entry: Entry, load: Load) -> None:
        """Let those go on who wait for *load*."""
        with self.lock:
            entry.load = None
        load.done.set()

    def release(self, entry: Entry) -> None:
        """Give one lease of *entry* back."""
        keep_alive_s = self._policy.keep_alive_s(entry.name)
        with self.lock:
            entry.leases -= 1
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
        with self.lock:
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

    def room(self, name: str) -> Room | None:
        """Return what the device can give to *name*; None: this store counts no bytes."""
        free, total = self._store.free_bytes, self._store.total_bytes
        if free is None or total is None:
            return None
        with self.lock:
            held, entry = self._held(), self._entries.get(name)
            in_use = entry is not None and entry.placed is not None and entry.leases > 1
        reserve = self._policy.reserve_bytes()
        room = room_for(name, held, free_bytes=free, total_bytes=total, reserve_bytes=reserve)
        return replace(room, in_use=in_use)

    def due_at(self) -> float | None:
        """Return when `tend` has something to do; None: as things are, never."""
        with self.lock:
            now = monotonic_s()
            found = due(self._held(), now=now)
            return now if found.evict or found.drop or self._surplus(0) else found.next_at

    def idle_bytes(self) -> int:
        """Return the bytes on the device that may leave it."""
        with self.lock:
            return sum(p.nbytes for p in loose(self._held(), tier="vram"))

    def idle(self, *, keep: str) -> bool:
        """Return whether `evict_idle` would have anything leave."""
        with self.lock:
            held = self._held()
        return bool(_keys(held, stays=_kept_keys(held, keep=keep)))

    def stays(self, name: str) -> bool:
        """Return whether *name* may not leave now: it is leased or pinned, or not there."""
        with self.lock:
            entry = self._entries.get(name)
            return entry is None or entry.leases > 0 or name in self._pinned

    def crowd(self, name: str) -> tuple[str, ...]:
        """Return the pinned models that leave no place for *name* where models are counted; () if there is one."""
        with self.lock:
            there = tuple(n for n, e in self._entries.items() if n in self._pinned and e.placed is not None)
        full = self._policy.models_max and len(there) >= self._policy.models_max
        return there if full and name not in there else ()

    # What follows moves parts.

    def make_room(self, lacking_bytes: int, *, first: Collection[str] = ()) -> bool:
        """Have *lacking_bytes* leave the device; False: not so much may leave, so nothing did."""

        def decide(held: tuple[Held, ...]) -> Plan | None:
            return make_room(lacking_bytes, held, now=monotonic_s(), first=first)

        return lacking_bytes <= 0 or self._evict(decide) is not None

    def evict_oldest(self) -> bool:
        """Have the least recently used model that may leave the device; return whether one did."""
        with self.lock:
            seen = [r for r in self._seen() if r.tier == "vram" and not (r.leases or r.pinned)]
        return bool(seen) and self.evict(min(seen, key=lambda r: r.used_at).name)

    def evict_idle(self, *, keep: str | None = None) -> bool:
        """Have everything leave the device that may, but nothing of *keep*; return whether anything did."""

        def decide(held: tuple[Held, ...]) -> Plan:
            return Plan(_keys(held, stays=_kept_keys(held, keep=keep)), 0.0)

        return bool((plan := self._evict(decide)) and plan.keys)

    def evict(self, name: str) -> bool:
        """Have *name* leave the device, but for what other models there use; False: it is not there, or must stay."""

        def decide(held: tuple[Held, ...]) -> Plan | None:
            model = next((m for m in held if m.name == name), None)
            if model is None or model.kept:
                return None
            entry = self._entries[name]
            using = (m for m in held if m.name != name and (m.kept or self._entries[m.name].placed))
            keys = _keys([model], stays={p.key for m in using for p in m.parts})
            there, entry.placed, entry.model = entry.placed, None, None
            return Plan(keys, 0.0) if keys or there else None

        return self._evict(decide) is not None

    def trim(self, *, incoming: int) -> bool:
        """Have models leave the device until *incoming* more make no more than may be; return whether any did."""
        with self.lock:
            leaving = self._surplus(incoming)
        left = [self.evict(name) for name in leaving]
        return any(left)

    def tend(self) -> bool:
        """Have leave what has idled for too long; return whether anything did."""
        gone = self._evict(lambda held: Plan(due(held, now=monotonic_s()).evict, 0.0))
        with self.lock:
            idle = due(self._held(), now=monotonic_s()).drop
        return self._drop(idle) or bool(gone and gone.keys)

    def make_host_room(self, lacking_bytes: int) -> bool:
        """Have parts leave host memory, *lacking_bytes* of them if there are so many; False: none may."""
        with self.lock:
            held = self._held()
        now = monotonic_s()
        plan = make_room(lacking_bytes, held, now=now, tier="ram")
        if plan is not None and self._drop(plan.keys):
            return True  # else all that was chosen are parts that no file brings back
        off = loose(held, tier="ram")
        # What is on the device needs its copy only when it leaves, and can be read again then.
        copied = tuple(replace(m, parts=tuple(p for p in m.parts if p.host)) for m in held)
        on = loose(copied, tier="vram")
        lacking_bytes -= sum(p.nbytes for p in off)
        plan = make_room(lacking_bytes, copied, now=now) or Plan(tuple(p.key for p in on), 0.0)
        return self._drop([*(p.key for p in off), *plan.keys])

    def drop(self, name: str) -> bool:
        """Have *name* leave host memory, but for what models have that are there; return whether anything did."""
        with self.lock:
            held = self._held()
        mine = [m for m in held if m.name == name and not m.kept]
        there = (m for m in held if m.name != name and (m.kept or tier_of(m.parts) != "disk"))
        others = {p.key for m in there for p in m.parts}
        return self._drop(_keys(mine, tier="ram", stays=others))

    def forget(self, name: str) -> bool:
        """Let go of all of *name* that no other model has; False: it is not there, or must stay."""
        with self.lock:
            entry = self._entries.get(name)
            if entry is None or entry.leases or name in self._pinned:
                return False
            del self._entries[name]
        self._store.forget(name)
        return True

    def _drop(self, keys: Iterable[str]) -> bool:
        dropped = False
        for key in keys:
            self._store.drop(key)
            part = self._store.parts().get(key)
            dropped = dropped or part is None or not part.host
        return dropped

    def _surplus(self, incoming: int) -> tuple[str, ...]:
        placed = [r for r in self._seen() if self._entries[r.name].placed is not None]
        return victims(placed, models_max=self._policy.models_max, incoming=incoming)

    def _evict(self, decide: Callable[[tuple[Held, ...]], Plan | None]) -> Plan | None:
        with self.lock:
            plan = decide(self._held())
            if plan is None:
                return None
            self._clock = max(self._clock, plan.clock)
            self._unplace(frozenset(plan.keys))
        try:
            for key in plan.keys:
                self._store.evict(key)
        finally:
            with self.lock:
                self._forget_gone()
        return plan

    def _outdated_parts(self, entry: Entry, keys: Collection[str], held: tuple[Held, ...]) -> Plan:
        if entry.leases > 1:
            return Plan((), 0.0)  # somebody else may be drawing with it
        others = {p.key for m in held if m.name != entry.name for p in m.parts}
        mine = [m for m in held if m.name == entry.name]
        return Plan(_keys(mine, stays=others.union(keys)), 0.0)

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

    def _held(self) -> tuple[Held, ...]:
        there = self._store.parts()
        return tuple(
            entry.held(_now(entry.parts, there), pinned=name in self._pinned)
            for name, entry in self._entries.items()
        )

    def _seen(self) -> Iterator[Resident]:
        there = self._store.parts()
        for name, entry in self._entries.items():
            yield entry.seen(_now(entry.parts, there), pinned=name in self._pinned)


def _now(parts: Iterable[Part], there: Mapping[str, Part]) -> tuple[Part, ...]:
    """Return *parts* as they are now: *there*, or only on the disk."""
    return tuple(there.get(p.key) or replace(p, tier="disk", host=False) for p in parts)


def _keys(held: Iterable[Held], *, stays: Collection[str], tier: Tier = "vram") -> tuple[str, ...]:
    return tuple(dict.fromkeys(p.key for m in held for p in m.parts if p.tier == tier and p.key not in stays))


def _no_room_for_pins(pins: Iterable[str], why: str) -> ModelTooLargeError:
    return ModelTooLargeError(f"the pinned models {', '.join(sorted(pins))} {why}; unpin one")


def _kept_keys(held: Iterable[Held], *, keep: str | None) -> set[str]:
    return {p.key for m in held if m.kept or m.name == keep for p in m.parts}
