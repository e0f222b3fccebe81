"""
A bounded cache of loaded models that a runner's requests share.

A model is *leased* for the block that uses it, and pinned meanwhile. However many leases want a model that is not
there, one loads it and the others wait. All loads of a process hold one lock, because diffusers and accelerate
change global state of the process while they construct a model, and fail silently when two do so at once; the lock
is per process rather than per cache for that reason. Which model leaves is decided by `falctl.core.residency`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Literal, TypeVar, cast

from falctl.clock import monotonic_s
from falctl.core.residency import Resident, Verdict, victims
from falctl.toolkit.cancel import RequestCancelled

M = TypeVar("M")

_LOADING: Final = threading.RLock()
_loader = threading.local()


def _nothing_changed() -> None: ...


def _nobody_asked(name: str, verdict: Verdict, load_s: float) -> None: ...


@dataclass(frozen=True, slots=True)
class CacheHooks:
    """What a cache reports, on the thread that caused it and with no lock held."""

    changed: Callable[[], None] = _nothing_changed
    """A load began or ended, or models were dropped."""
    leased: Callable[[str, Verdict, float], None] = _nobody_asked
    """A lease got its model: the name, how, and the seconds it took."""


@dataclass(eq=False, slots=True)
class _Entry:
    name: str
    used_at: float
    pins: int = 0
    done: threading.Event = field(default_factory=threading.Event)
    busy: bool = False
    model: Any = None
    error: BaseException | None = None
    load_s: float = 0.0

    def seen(self) -> Resident:
        state: Literal["loading", "ready"] = "ready" if self.done.is_set() else "loading"
        return Resident(self.name, state, self.used_at, self.pins, self.load_s)


class ModelCache(Generic[M]):
    """At most *models_max* models by name; made by ``self.runner.model_cache(load=...)``. Thread-safe."""

    def __init__(  # noqa: PLR0913 - what an author may say, and what the host does
        self,
        load: Callable[[str], M],
        *,
        unload: Callable[[M], None] | None = None,
        check: Callable[[str], object] | None = None,
        models_max: int = 3,
        overlaps: bool = False,
        hooks: CacheHooks = CacheHooks(),
    ) -> None:
        self.models_max = models_max
        self.overlaps = overlaps
        """Whether *load* may run beside a request: it only moves bytes, it constructs nothing."""
        self._load = load
        self._unload = unload
        self._check = check
        self._hooks = hooks
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}  # least recently used first

    @property
    def resident(self) -> tuple[str, ...]:
        """Return the names of the loaded models, most recently used first."""
        with self._lock:
            return tuple(e.name for e in reversed(self._entries.values()) if e.done.is_set())

    def residents(self) -> tuple[Resident, ...]:
        """Return every model, loading ones too, most recently used first."""
        with self._lock:
            return tuple(e.seen() for e in reversed(self._entries.values()))

    @contextmanager
    def lease(self, name: str) -> Iterator[M]:
        """
        Hold the model *name* for a block, loading it first if need be; blocks while it loads.

        Do not enter it on an event loop. Raises whatever the load raised, to every lease that waited for it;
        then nothing is cached.
        """
        asked_at = monotonic_s()
        entry, verdict = self._get(name)
        try:
            self._hooks.leased(name, verdict, 0.0 if verdict == "hit" else monotonic_s() - asked_at)
            yield cast("M", entry.model)
        finally:
            self._unpin(entry)

    def load(self, name: str, *, evict: Sequence[str] = ()) -> float:
        """
        Load *name* ahead of any request for it, after dropping *evict*; return the seconds that took, 0 if it was there.

        Blocks while it loads; raises what the load raised. A model of *evict* that is in use stays; all do if the
        name does not pass the cache's check.
        """
        if self._check is not None:
            self._check(name)
        for victim in evict:
            self.evict(victim)
        began_at = monotonic_s()
        entry, verdict = self._get(name)
        self._unpin(entry)
        return 0.0 if verdict == "hit" else monotonic_s() - began_at

    def evict(self, name: str) -> bool:
        """Drop *name*; False when it is not loaded or is in use."""
        with self._lock:
            entry = self._entries.get(name)
            if entry is None or entry.pins:  # one that loads is pinned by its loader
                return False
            del self._entries[name]
        self._free([entry])
        self._hooks.changed()
        return True

    def _get(self, name: str) -> tuple[_Entry, Verdict]:
        """Return a loaded, pinned entry. One whose load failed is out of the cache, so its pins count no more."""
        while True:
            entry, verdict = self._claim(name)
            try:
                self._fill(entry, verdict)
            except RequestCancelled:
                if verdict == "disk":
                    raise
                # The request that was loading it was cancelled; ours was not.
            else:
                return entry, verdict

    def _claim(self, name: str) -> tuple[_Entry, Verdict]:
        with self._lock:
            entry = self._entries.pop(name, None)
            verdict: Verdict = "disk"
            if entry is None:
                entry = _Entry(name, used_at=monotonic_s())
            else:
                verdict = "hit" if entry.done.is_set() else "join"
            self._entries[name] = entry
            entry.pins += 1
            entry.used_at = monotonic_s()
            return entry, verdict

    def _fill(self, entry: _Entry, verdict: Verdict) -> None:
        if verdict == "disk" or (verdict == "join" and getattr(_loader, "active", False)):
            # A load that leases another model must not wait for a thread that waits for its lock.
            with _LOADING:
                if not entry.done.is_set():
                    self._load_into(entry)
        else:
            entry.done.wait()
        if entry.error is not None:
            raise entry.error

    def _load_into(self, entry: _Entry) -> None:
        if entry.busy:
            msg = f"the load of {entry.name!r} leases {entry.name!r}"
            raise RuntimeError(msg)
        entry.busy = True
        outer, _loader.active = getattr(_loader, "active", False), True
        try:
            if self._check is not None:
                self._check(entry.name)
            self._make_room(incoming=1)
            self._hooks.changed()
            began_at = monotonic_s()
            entry.model = self._load(entry.name)
            entry.load_s = monotonic_s() - began_at
        except BaseException as error:
            entry.error = error
            with self._lock:
                del self._entries[entry.name]
            raise
        finally:
            _loader.active = outer
            entry.done.set()
            self._hooks.changed()

    def _make_room(self, *, incoming: int) -> bool:
        with self._lock:
            loaded = [e.seen() for e in self._entries.values() if e.done.is_set()]
            names = victims(loaded, models_max=self.models_max, incoming=incoming)
            leaving = [self._entries.pop(name) for name in names]
        self._free(leaving)
        return bool(leaving)

    def _free(self, leaving: list[_Entry]) -> None:
        if self._unload is not None:
            for entry in leaving:
                self._unload(entry.model)

    def _unpin(self, entry: _Entry) -> None:
        with self._lock:
            entry.pins -= 1
            entry.used_at = monotonic_s()
        # While every model was pinned the cache may have grown beyond its bound.
        if self._make_room(incoming=0):
            self._hooks.changed()
