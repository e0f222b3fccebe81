"""What leaves the device, host memory, or the cache: decided over values, marked in `Holdings`, done by the store."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Generic, TypeVar

from falctl.clock import monotonic_s
from falctl.core.keep_alive import due
from falctl.core.residency import Held, Part, Plan, Tier, loose, make_room, tier_of
from falctl.toolkit.cache_entry import Entry
from falctl.toolkit.holdings import Holdings
from falctl.toolkit.model_store import ModelStore

M = TypeVar("M")


class Leaving(Generic[M]):
    """Has parts of *holdings* leave. `LOADING` is held by who calls; not for the questions."""

    def __init__(self, store: ModelStore[M], holdings: Holdings[M]) -> None:
        self._store = store
        self._holdings = holdings

    def idle_bytes(self) -> int:
        """Return the bytes on the device that may leave it."""
        with self._holdings.lock:
            return sum(p.nbytes for p in loose(self._holdings.held(), tier="vram"))

    def idle(self, *, keep: str) -> bool:
        """Return whether `evict_idle` would have anything leave."""
        with self._holdings.lock:
            held = self._holdings.held()
        return bool(_keys(held, stays=_kept_keys(held, keep=keep)))

    @contextmanager
    def making(self, entry: Entry, parts: tuple[Part, ...]) -> Iterator[None]:
        """
        Note for a block, which ends with `made`, that *entry* will be made of *parts*, as far as that is known.

        What it was made of before its files were replaced leaves the device, unless it is used. If the block fails,
        that is what it is made of as before: whoever makes room has to know who has those bytes.
        """
        self._leave(lambda held: _outdated_parts(entry, {p.key for p in parts}, held))
        before, stood = entry.parts, entry.constructed
        self._holdings.made(entry, parts, stands=False)
        try:
            yield
        except BaseException:
            self._holdings.made(entry, before, stands=stood)
            raise

    def make_room(self, lacking_bytes: int, *, first: Collection[str] = ()) -> bool:
        """Have *lacking_bytes* leave the device; False: not so much may leave, so nothing did."""

        def decide(held: tuple[Held, ...]) -> Plan | None:
            return make_room(lacking_bytes, held, now=monotonic_s(), first=first)

        return lacking_bytes <= 0 or self._leave(decide) is not None

    def evict_oldest(self) -> bool:
        """Have the least recently used model that may leave the device; return whether one did."""
        seen = [r for r in self._holdings.residents() if r.tier == "vram" and not (r.leases or r.pinned)]
        return bool(seen) and self.evict(min(seen, key=lambda r: r.used_at).name)

    def evict_idle(self, *, keep: str | None = None) -> bool:
        """Have everything leave the device that may, but nothing of *keep*; return whether anything did."""

        def decide(held: tuple[Held, ...]) -> Plan:
            return Plan(_keys(held, stays=_kept_keys(held, keep=keep)), 0.0)

        return bool((plan := self._leave(decide)) and plan.keys)

    def evict(self, name: str) -> bool:
        """Have *name* leave the device, but for what other models there use; False: it is not there, or must stay."""

        def decide(held: tuple[Held, ...]) -> Plan | None:
            model = next((m for m in held if m.name == name), None)
            if model is None or model.kept:
                return None
            using = (m for m in held if m.name != name and (m.kept or self._holdings.is_placed(m.name)))
            keys = _keys([model], stays={p.key for m in using for p in m.parts})
            there = self._holdings.unplaced(name)
            return Plan(keys, 0.0) if keys or there else None

        return self._leave(decide) is not None

    def trim(self, *, incoming: int) -> bool:
        """Have models leave the device until *incoming* more make no more than may be; return whether any did."""
        with self._holdings.lock:
            leaving = self._holdings.surplus(incoming)
        left = [self.evict(name) for name in leaving]
        return any(left)

    def tend(self) -> bool:
        """Have leave what has idled for too long; return whether anything did."""
        gone = self._leave(lambda held: Plan(due(held, now=monotonic_s()).evict, 0.0))
        with self._holdings.lock:
            idle = due(self._holdings.held(), now=monotonic_s()).drop
        dropped = self._drop(idle)
        return self._forget_with(idle) or dropped or bool(gone and gone.keys)

    def make_host_room(self, lacking_bytes: int) -> bool:
        """Have parts leave host memory, *lacking_bytes* of them if there are so many; False: none may."""
        with self._holdings.lock:
            held = self._holdings.held()
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
        """
        Have *name* leave host memory, but for what models have that are there; return whether anything did.

        If it has parts that no file brings back, all of it goes, its modules, too: else it could never leave.
        """
        with self._holdings.lock:
            held = self._holdings.held()
        mine = [m for m in held if m.name == name and not m.kept]
        there = (m for m in held if m.name != name and (m.kept or tier_of(m.parts) != "disk"))
        others = {p.key for m in there for p in m.parts}
        keys = _keys(mine, tier="ram", stays=others)
        dropped = self._drop(keys)
        return self._forget_with(keys) or dropped

    def forget(self, name: str) -> bool:
        """Let go of all of *name* that no other model has; False: it is not there, or must stay."""
        if not self._holdings.forget(name):
            return False
        self._store.forget(name)
        return True

    def _forget_with(self, keys: Iterable[str]) -> bool:
        """Forget the models of which parts were to be dropped and are in host memory all the same."""
        there = self._store.parts()
        stuck = {key for key in keys if key in there and there[key].host}
        with self._holdings.lock:
            held = self._holdings.held()
        left = [self.forget(m.name) for m in held if any(p.key in stuck for p in m.parts)]
        return any(left)

    def _drop(self, keys: Iterable[str]) -> bool:
        dropped = False
        for key in keys:
            self._store.drop(key)
            part = self._store.parts().get(key)
            dropped = dropped or part is None or not part.host
        self._forget_outlived()
        return dropped

    def _leave(self, decide: Callable[[tuple[Held, ...]], Plan | None]) -> Plan | None:
        plan = self._holdings.marked(decide)
        if plan is None:
            return None
        try:
            for key in plan.keys:
                self._store.evict(key)
        finally:
            self._holdings.forget_gone()
        if plan.keys:
            self._forget_outlived()
        return plan

    def _forget_outlived(self) -> None:
        for name in self._holdings.outlived():
            self.forget(name)


def _outdated_parts(entry: Entry, keys: Collection[str], held: tuple[Held, ...]) -> Plan:
    if len(entry.leases) > 1:
        return Plan((), 0.0)  # somebody else may be drawing with it
    others = {p.key for m in held if m.name != entry.name for p in m.parts}
    mine = [m for m in held if m.name == entry.name]
    return Plan(_keys(mine, stays=others.union(keys)), 0.0)


def _keys(held: Iterable[Held], *, stays: Collection[str], tier: Tier = "vram") -> tuple[str, ...]:
    return tuple(dict.fromkeys(p.key for m in held for p in m.parts if p.tier == tier and p.key not in stays))


def _kept_keys(held: Iterable[Held], *, keep: str | None) -> set[str]:
    return {p.key for m in held if m.kept or m.name == keep for p in m.parts}
