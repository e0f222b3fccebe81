"""A `ModelStore` in memory: models of named parts, a byte budget for the device and one for the host, moves counted."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from falctl.core.activations import Drawing
from falctl.core.fit import How
from falctl.core.residency import Part
from falctl.errors import HostMemoryFullError, NotFoundError
from falctl.toolkit import ModelCache

PLENTY = 1 << 40


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@dataclass(eq=False)
class Model:
    """What runs: it can as long as all that it is made of is on the device."""

    name: str
    version: int
    parts: tuple[str, ...]
    store: CountedStore

    @property
    def ready(self) -> bool:
        parts = self.store.parts()
        return all(parts[key].tier == "vram" for key in self.parts)

    def draw(self, nbytes: int) -> str:
        """Take *nbytes* beside the weights for a moment."""
        if nbytes > self.store.free_bytes:
            raise OutOfMemoryError(f"tried to allocate {nbytes} bytes")
        return self.name.upper()


def _stop_if(cancelled: threading.Event | None) -> None:
    if cancelled is not None and cancelled.is_set():
        raise InterruptedError


@dataclass(eq=False)
class CountedStore:
    """
    Holds *models*, which are sizes by part, on a device of *total_bytes*.

    *broken* are operations that fail once each: the error, by "place a", "construct a", "fill a".
    """

    models: Mapping[str, Mapping[str, int]]
    total_bytes: int = PLENTY
    host_bytes: int = PLENTY
    peaks: Mapping[str, int] = field(default_factory=dict)
    once: frozenset[str] = frozenset()
    broken: dict[str, Exception] = field(default_factory=dict)
    gates: dict[str, threading.Event] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    moves: Counter[str] = field(default_factory=Counter)
    taken_bytes: int = 0
    """By others on the device."""
    drawn_bytes: int = 0
    """By drawings that run."""
    lies: bool = False
    """Whether `free_bytes` leaves out what others have taken."""
    stuck: frozenset[str] = frozenset()
    """Parts that no file brings back: they stay in host memory."""
    busy: str = ""
    """The move that is under way."""
    waiting: str = ""
    """The move that is at its gate."""
    refused: int = 0
    """How often host memory was full."""
    hows: dict[str, How] = field(default_factory=dict)
    moved_bytes: dict[str, int] = field(default_factory=dict)
    """Of parts that are on their way from the disk."""

    def __post_init__(self) -> None:
        self._parts: dict[str, Part] = {}
        self._made: dict[str, tuple[int, Mapping[str, int]]] = {}
        self._versions: Counter[str] = Counter()
        self._moving = threading.Lock()
        self._bytes = threading.Lock()

    # Questions

    @property
    def used_bytes(self) -> int:
        return sum(p.nbytes for p in self.parts().values() if p.tier == "vram")

    @property
    def used_host_bytes(self) -> int:
        return sum(p.nbytes for p in self.parts().values() if p.host)

    @property
    def free_bytes(self) -> int:
        return self.total_bytes - self.used_bytes - (0 if self.lies else self.taken_bytes) - self.drawn_bytes

    def check(self, name: str) -> None:
        if name not in self.models:
            raise NotFoundError(f"no model {name!r}")

    def needs(self, name: str) -> tuple[Part, ...]:
        self.check(name)
        there = self.parts()
        sizes = self.models[name]
        return tuple(there.get(k) or Part(k, n, "disk", False, k in self.once) for k, n in sizes.items())

    def peak_bytes(self, name: str, drawing: Drawing | None) -> int:
        return self.peaks.get(name, 0) if drawing is None else drawing.width * drawing.height

    def parts(self) -> Mapping[str, Part]:
        with self._bytes:
            return dict(self._parts)

    def module_bytes(self, name: str) -> int:
        assert name in self._made, f"{name} does not stand"
        return 1

    def is_constructed(self, name: str) -> bool:
        self.check(name)
        return name in self._made and self._made[name][1] is self.models[name]

    # Moves

    def moved(self) -> Mapping[str, int]:
        return dict(self.moved_bytes)

    def construct(self, name: str, cancelled: threading.Event | None = None) -> None:
        with self._one("construct", name):
            _stop_if(cancelled)
            self._versions[name] += 1
            self._made[name] = self._versions[name], self.models[name]
            with self._bytes:
                for key, size in self.models[name].items():
                    self._parts.setdefault(key, Part(key, size, "disk", False, key in self.once))
            self._forget_unused()

    def fill(self, name: str, cancelled: threading.Event) -> None:
        for key in self.models[name]:
            if self.parts()[key].tier != "disk":
                continue
            self._perhaps_fail("fill", name)
            _stop_if(cancelled)
            with self._bytes:
                part = self._parts[key]
                if part.nbytes + sum(p.nbytes for p in self._parts.values() if p.host) > self.host_bytes:
                    self.refused += 1
                    raise HostMemoryFullError(f"no {part.nbytes} bytes")
                if part.tier == "disk":
                    self._parts[key] = replace(part, tier="ram", host=True)
            self.moves[f"fill {key}"] += 1

    def place(
        self,
        name: str,
        how: How = "whole",
        *,
        filling: bool = False,
        cancelled: threading.Event | None = None,
    ) -> Model:
        with self._one("place", name):
            _stop_if(cancelled)
            if filling:
                self.fill(name, cancelled or threading.Event())
            version, sizes = self._made[name]
            for key in sizes:
                part = self.parts()[key]
                if part.tier != "vram":
                    if self.used_bytes + self.taken_bytes + self.drawn_bytes + part.nbytes > self.total_bytes:
                        raise OutOfMemoryError(f"no room for {key}")
                    self._set(key, replace(part, tier="vram"))
                    self.moves[f"place {key}"] += 1
            self.hows[name] = how
            return Model(name, version, tuple(sizes), self)

    def evict(self, key: str) -> None:
        with self._one("evict", key):
            part = self.parts()[key]
            assert part.tier == "vram", f"{key} is evicted from {part.tier}"
            self._set(key, replace(part, tier="ram" if part.host else "disk"))

    def drop(self, key: str) -> None:
        with self._one("drop", key):
            part = self.parts()[key]
            assert part.host, f"{key} is dropped from {part.tier}"
            if key in self.stuck:
                return
            self._set(key, replace(part, tier="vram" if part.tier == "vram" else "disk", host=False))

    def forget(self, name: str) -> None:
        with self._one("forget", name):
            del self._made[name]
            self._forget_unused()

    def _set(self, key: str, part: Part) -> None:
        with self._bytes:
            self._parts[key] = part

    def _forget_unused(self) -> None:
        used = {key for _, sizes in self._made.values() for key in sizes}
        with self._bytes:
            self._parts = {key: part for key, part in self._parts.items() if key in used}

    @contextmanager
    def _one(self, move: str, what: str) -> Iterator[None]:
        assert self._moving.acquire(blocking=False), f"{move} {what} beside another move"
        self.busy = f"{move} {what}"
        try:
            self._perhaps_fail(move, what)
            yield
            self.moves[f"{move} {what}"] += 1
            self.log.append(f"{move} {what}")
        finally:
            self.busy = ""
            self._moving.release()

    def _perhaps_fail(self, move: str, what: str) -> None:
        if (gate := self.gates.get(f"{move} {what}")) is not None:
            self.waiting = f"{move} {what}"
            assert gate.wait(60.0)
            self.waiting = ""
        if (error := self.broken.pop(f"{move} {what}", None)) is not None:
            raise error


def assert_all_can_go(store: CountedStore, cache: ModelCache[Model]) -> None:
    """Check that nothing is held, and that all of it can be let go of."""
    assert all(r.leases == 0 and r.state == "ready" for r in cache.residents())
    for name in store.models:
        cache.unpin(name)
        cache.evict(name, "disk")
    assert cache.residents() == ()
    assert (store.used_bytes, store.used_host_bytes, dict(store.parts())) == (0, 0, {})
