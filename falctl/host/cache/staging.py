"""
Components that come and go: each is on the device when it runs, and others leave when there is no room for it.

A component is *entered* by a call of it, of one of its direct children, or of its ``encode``, ``decode`` or ``to``; the
last because pipelines cast a VAE up before they decode, and a component that moved after that would be in its old
dtype again. While it runs it does not leave. Where it is, is asked of the component itself, so that a cache may evict
it between two runs without a word to this.

Pipelines ask diffusers where to create their inputs, which looks for the ``execution_device`` of an ``_hf_hook`` on
their first component (`_execution_device` in its pipeline_utils.py), and elsewhere for the device of a component's
weights, which may be in host memory at that moment: the former is set, and inputs on the wrong device are moved as
the component is entered.
"""

from __future__ import annotations

import functools
import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import torch

from falctl.core.fit import leavers
from falctl.core.sizes import size_text
from falctl.host.cache.arena import Tier
from falctl.host.cache.device import Device

log = logging.getLogger(__name__)

_METHODS: Final = ("forward", "encode", "decode", "to")


class Movable(Protocol):
    """A component's weights, as far as staging goes: an `Arena`, or what moves in another way."""

    @property
    def nbytes(self) -> int:
        """What it takes on the device."""
        ...

    @property
    def tier(self) -> Tier:
        """Where its weights are."""
        ...

    def to_device(self, device: Device) -> None:
        """Load it; blocking. Raises torch.OutOfMemoryError with nothing changed."""
        ...

    def evict(self) -> None:
        """Take it off its device."""
        ...


def _nothing() -> int:
    return 0


@dataclass(frozen=True, slots=True)
class StagedPart:
    """One component of a pipeline."""

    name: str
    module: torch.nn.Module
    weights: Movable
    same: int = 0
    """Equal for modules with the same weights, as the clone is of a module that LoRAs are put into; 0: no other has them."""
    peak_bytes: Callable[[], int] = _nothing
    """Return what has to be free beside its weights while it runs."""


@dataclass(frozen=True, slots=True)
class _ExecutionDevice:
    """What diffusers looks for on a component: where it runs, wherever its weights are."""

    execution_device: torch.device


@dataclass(eq=False, slots=True)
class _Watch:
    """A component with our hooks on it. *holders*: the pipelines that it belongs to; *running*: calls under way."""

    part: StagedPart
    holders: set[int] = field(default_factory=set)
    running: int = 0
    undo: list[Callable[[], None]] = field(default_factory=list)


class Staging:
    """
    The components that come and go on one *device*: one for a process, as pipelines share components.

    Threads may run pipelines at the same time; moves take a lock.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._lock = threading.RLock()
        self._watches: dict[int, _Watch] = {}  # by the module's id; least recently entered first
        self._last: _Watch | None = None
        self._numbers = itertools.count()

    @contextmanager
    def staged(self, parts: Iterable[StagedPart]) -> Iterator[None]:
        """
        Have *parts* come and go for a block; however it ends, they are left where they are and free of hooks.

        A component of several pipelines may be held by several blocks at a time. To make room for one only others of its
        own pipelines leave: somebody may be drawing with the rest, and admission has left this one enough.
        """
        held: set[int] = set()
        holder = next(self._numbers)
        try:
            for part in parts:
                self._hold(part, holder)
                held.add(id(part.module))
            yield
        finally:
            for key in held:
                self._release(key, holder)

    def _hold(self, part: StagedPart, holder: int) -> None:
        with self._lock:
            watch = self._watches.get(id(part.module))
            if watch is None:
                watch = _Watch(part)
                self._watches[id(part.module)] = watch
                self._install(watch)
            watch.part = part
            watch.holders.add(holder)

    def _release(self, key: int, holder: int) -> None:
        with self._lock:
            watch = self._watches[key]
            watch.holders.discard(holder)
            if not watch.holders:
                del self._watches[key]
                for undo in reversed(watch.undo):
                    undo()
                if self._last is watch:
                    self._last = None

    def _install(self, watch: _Watch) -> None:
        module: Any = watch.part.module
        for name in _METHODS:
            if callable(getattr(module, name, None)):
                watch.undo.append(_replaced(module, name, self._guarded(watch, name)))
        for child in module.children():
            # A list of modules is never called itself, and what is in one is never the first to run.
            if not isinstance(child, torch.nn.ModuleList | torch.nn.ModuleDict):
                handle = child.register_forward_pre_hook(lambda _module, _args: self._enter(watch))
                watch.undo.append(handle.remove)
        where = _ExecutionDevice(self._device.torch_device)
        watch.undo.append(_replaced(module, "_hf_hook", where))

    def _guarded(self, watch: _Watch, name: str) -> Callable[..., Any]:
        inner: Callable[..., Any] = getattr(watch.part.module, name)
        device = self._device.torch_device

        @functools.wraps(inner)
        def entered(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                self._enter(watch)
                watch.running += 1
            try:
                if name == "forward":
                    args, kwargs = moved(args, device), moved(kwargs, device)
                return inner(*args, **kwargs)
            finally:
                with self._lock:
                    watch.running -= 1

        return entered

    def _enter(self, watch: _Watch) -> None:
        """Have *watch*'s component on the device, with room for what it does. Raises torch.OutOfMemoryError."""
        weights = watch.part.weights
        with self._lock:
            if self._last is watch and weights.tier == "device":
                return
            self._watches[id(watch.part.module)] = self._watches.pop(id(watch.part.module))
            here = weights.tier == "device"
            self._make_room(watch, watch.part.peak_bytes() + (0 if here else weights.nbytes))
            if not here:
                weights.to_device(self._device)
                log.debug("stage.entered part=%s bytes=%s", watch.part.name, size_text(weights.nbytes))
            self._last = watch

    def _make_room(self, watch: _Watch, need_bytes: int) -> None:
        stay = {_same(watch)} | {_same(other) for other in self._watches.values() if other.running}
        keys = {
            _same(other): key
            for key, other in self._watches.items()
            if _same(other) not in stay and other.holders & watch.holders
        }
        # In the order in which they were entered; of two modules with the same weights, when the later one was.
        present = {
            key: other.part.weights.nbytes
            for key, other in self._watches.items()
            if key in keys.values() and other.part.weights.tier == "device"
        }
        if not present:
            return
        for key in leavers(present, need_bytes=need_bytes, free_bytes=self._device.free_bytes):
            left = self._watches[key].part
            left.weights.evict()
            log.debug("stage.left part=%s bytes=%s", left.name, size_text(left.weights.nbytes))


def _same(watch: _Watch) -> int:
    return watch.part.same or id(watch)


def moved(value: Any, device: torch.device) -> Any:
    """Return *value*, which may be a tensor or a container of some, with every tensor on *device*."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if type(value) in (list, tuple):
        return type(value)(moved(one, device) for one in value)
    if type(value) is dict:
        return {key: moved(one, device) for key, one in value.items()}
    return value


def _replaced(module: torch.nn.Module, name: str, value: object) -> Callable[[], None]:
    """Make *value* the attribute *name* of this one *module*; return what undoes it."""
    own = module.__dict__
    had, before = name in own, own.get(name)
    own[name] = value

    def undo() -> None:
        if had:
            own[name] = before
        else:
            own.pop(name, None)

    return undo
