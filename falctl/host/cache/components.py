"""
One held component: a module, where its bytes are, and which models use it.

Most are *packed*: their weights are an `Arena`, whose host bytes are a block of a `HostMemory` and can be dropped once
it is proved that the files bring them back. What cannot be packed is *loose* (`loose_component.py`).

A lock guards the moves of each component, since bytes may be filled beside an execution; what is asked takes none.
"""

from __future__ import annotations

import gc
import hashlib
import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Final

import torch

from falctl.core.fit import BlockPlan, role_of
from falctl.core.residency import Part, Tier
from falctl.core.sizes import size_text
from falctl.errors import HostMemoryFullError, ModelFilesError, ModelTooLargeError
from falctl.host.cache.arena import Arena
from falctl.host.cache.arrival import Arrival
from falctl.host.cache.device import Device
from falctl.host.cache.float8 import beside_bytes
from falctl.host.cache.folder import Component
from falctl.host.cache.held_component import HeldComponent
from falctl.host.cache.host_memory import HostBlock, HostMemory
from falctl.host.cache.layout import Layout, NotPackableError, survey
from falctl.host.cache.loose_component import LooseComponent
from falctl.host.cache.offload import Offloaded, blocks_in, offloaded
from falctl.host.cache.reading import Placement
from falctl.host.cache.refill import pass_through, read_again, staging_sizes
from falctl.host.cache.stopping import Move, holding, stop_if
from falctl.host.cache.tensor_names import find_placements, moved_to

log = logging.getLogger(__name__)

_TIERS: Final[dict[str, Tier]] = {"device": "vram", "host": "ram", "skeleton": "disk"}


def hold(
    module: torch.nn.Module, source: Component, *, key: str, memory: HostMemory, move: Move | None = None
) -> HeldComponent:
    """
    Return *module*, just loaded from the files of *source*, as a held component; blocks for a copy of its weights.

    Raises HostMemoryFullError where its bytes have no room in host memory and the files could not bring them back, and
    LoadCancelledError where *move* is cancelled: *module* is in pieces then.
    """
    try:
        return PackedComponent(module, source, key=key, memory=memory, move=move)
    except NotPackableError as error:
        log.warning(
            "cache.loose component=%s class=%s: %s; moved by .to()", source.name, source.class_name, error
        )
        return LooseComponent(module, key=key, once=_runs_once(source))


class PackedComponent:
    """A component in an arena."""

    def __init__(
        self,
        module: torch.nn.Module,
        source: Component,
        *,
        key: str,
        memory: HostMemory,
        move: Move | None = None,
    ) -> None:
        """Pack *module*, or attach the bytes that the memory has of it; see `hold`. Raises NotPackableError."""
        move = move or Move()
        self.module = module
        self.users: set[str] = set()
        self._key = key
        self._source = source
        self._others: list[Component] = []
        self._memory = memory
        self._lock = threading.Lock()
        self._block: HostBlock | None = None
        self._placements: Sequence[Placement] | None = None
        self._unproved = False
        self._abandoned = False
        self._plan: BlockPlan | None = None
        self._offloaded: Offloaded | None = None
        self._move: Move | None = None
        self._beside_bytes = beside_bytes(module)
        layout, tensors = survey(module)
        self._block_key = f"{key}-{_fingerprint(layout, tensors)}"
        try:
            block = memory.obtain(self._block_key, layout.nbytes, cancelled=move.cancelled)
        except HostMemoryFullError:
            self._arena = Arena(module, packed=move.went_on)
            if not self._proved():
                raise
            self._arena.drop_host()
        else:
            self._arena = _arena_in(block, module, move)
            self._block = block

    @property
    def part(self) -> Part:
        moving, once = self._offloaded, _runs_once(self._source)
        if moving is not None and moving.tier == "device":
            return Part(self._key, moving.nbytes, "vram", once=once)
        tier, host = self._arena.tier, self._arena.host
        return Part(self._key, self._arena.nbytes, _TIERS[tier], host=host is not None, once=once)

    def has_also(self, source: Component) -> None:
        with self._lock:
            known = [self._source, *self._others]
            if all(source.weights != other.weights for other in known):
                self._others.append(source)

    def fill(self, cancelled: threading.Event) -> None:
        with holding(self._lock, cancelled):
            stop_if(cancelled)
            if self._arena.tier != "skeleton":
                return
            with self._moving(cancelled) as move:
                block = self._memory.obtain(self._block_key, self._arena.nbytes, cancelled=cancelled)
                try:
                    self._fill(block, move)
                except BaseException:
                    block.release()
                    raise
            self._keep(block)

    @property
    def moved(self) -> int:
        move = self._move
        return move.nbytes if move is not None and self._arena.tier == "skeleton" else 0

    @property
    def beside_bytes(self) -> int:
        return self._beside_bytes

    @cached_property
    def blocks(self) -> tuple[int, ...]:
        # Once: every lease asks, and a large model has thousands of tensors to sort.
        return tuple(block.nbytes for block in blocks_in(self._arena.layout))

    @property
    def whole_bytes(self) -> int:
        return self._arena.nbytes

    @property
    def device_bytes(self) -> int:
        return self._arena.nbytes if self._offloaded is None else self._offloaded.nbytes

    def offload(self, plan: BlockPlan | None, modules: Sequence[torch.nn.Module]) -> None:
        if plan == self._plan:
            if self._offloaded is not None:
                for module in modules:
                    self._offloaded.also(module)
            return
        self.evict()
        with self._lock:
            self._plan, self._offloaded = None, None
            if plan is None:
                return
            if self._arena.host is None:
                msg = (
                    f"its {self._source.name} would go through the device block by block, out of host memory, "
                    f"which has no room for its {size_text(self._arena.nbytes)} (cache.host_memory)"
                )
                raise ModelTooLargeError(msg)
            self._plan, self._offloaded = plan, offloaded(modules, self._arena, plan)

    def to_device(
        self, device: Device, *, filling: bool = False, cancelled: threading.Event | None = None
    ) -> None:
        with holding(self._lock, cancelled):
            stop_if(cancelled)
            if self._offloaded is not None:
                self._offloaded.to_device(device)
                return
            if self._arena.tier != "skeleton":
                self._arena.to_device(device)
                return
            with self._moving(cancelled) as move:
                self._bring(device, move, filling=filling)

    def evict(self) -> None:
        with self._lock:
            if self._offloaded is not None:
                self._offloaded.evict()
                return
            device = self._arena.device
            if device is None:
                return
            used_bytes = device.used_bytes
            self._arena.evict()
            if device.used_bytes > used_bytes - self._arena.nbytes:
                # Somebody in a cycle of references still views the buffer: the traceback of an error, say.
                gc.collect()
                device.give_back()

    def drop(self) -> None:
        with self._lock:
            if self._arena.host is None:
                return
            if self._offloaded is not None:
                if self._offloaded.tier == "device":
                    return  # its blocks come from there
                self._plan, self._offloaded = None, None
            if self._proved():
                self._arena.drop_host()
                self._release()

    def forget(self) -> None:
        self.evict()
        with self._lock:
            self._arena.drop_host()
            self._release()

    def abandon(self) -> None:
        # Without the lock, for a `fill` has it for as long as it reads: one of the two finds the block and the mark.
        self._abandoned = True
        block, self._block = self._block, None
        if block is not None:
            weakref.finalize(self.module, block.release)

    def _proved(self) -> bool:
        # Once: it reads all of the files, and whoever wants the memory asks again and again.
        if self._placements is None and not self._unproved:
            assert self._arena.host is not None
            why = "its files do not give its weights again"
            try:
                self._placements = find_placements(self._source, self._arena.layout, self._arena.host)
            except ModelFilesError as error:
                why = str(error)
            self._unproved = self._placements is None
            if self._unproved:
                log.warning(
                    "cache.unproved component=%s class=%s: %s; it stays in host memory",
                    *(self._source.name, self._source.class_name, why),
                )
        return self._placements is not None

    @contextmanager
    def _moving(self, cancelled: threading.Event | None) -> Iterator[Move]:
        self._move = Move(cancelled)
        try:
            yield self._move
        finally:
            self._move = None

    def _bring(self, device: Device, move: Move, *, filling: bool) -> None:
        """Have a skeleton on *device*: by way of host memory, where its bytes stay, if *filling*."""
        arrival, block = device.arrival(self._arena.nbytes), None
        try:
            if filling:
                block = self._memory.obtain(self._block_key, self._arena.nbytes, cancelled=move.cancelled)
                self._fill(block, move, arrival)
            else:
                stagings = [device.staging(n) for n in staging_sizes(self._arena.layout.file_nbytes)]
                self._read(
                    move, lambda found: pass_through(self._arena, found, stagings, move, arrival=arrival)
                )
            flat = arrival.finish()
        except BaseException:
            arrival.abort()  # first: a copy may be reading from the block
            if block is not None:
                block.release()
            raise
        self._arena.settle(device, flat)
        if block is not None:
            self._keep(block)

    def _keep(self, block: HostBlock) -> None:
        self._arena.attach(block.flat)
        self._block = block
        if self._abandoned:
            self.abandon()  # while it was read, when there was no block to leave yet

    def _fill(self, block: HostBlock, move: Move, arrival: Arrival | None = None) -> None:
        """Have *block* filled, and *arrival*."""
        if not block.filled:
            self._read(move, lambda found: read_again(self._arena, found, block.flat, move, arrival=arrival))
            block.seal()
        elif arrival is not None:
            arrival.copy(0, block.flat)

    def _read(self, move: Move, read: Callable[[Sequence[Placement]], None]) -> None:
        assert self._placements is not None, "only what is proved becomes a skeleton"
        while True:
            try:
                read(self._placements)
            except ModelFilesError:
                if not self._others:
                    raise
                move.restart()
                # Its own files are gone or others by now; those of another model have the same bytes.
                other = self._others.pop(0)
                self._placements = moved_to(other, self._placements, self._source)
                self._source = other
            else:
                return

    def _release(self) -> None:
        block, self._block = self._block, None
        if block is not None:
            block.release()


def _arena_in(block: HostBlock, module: torch.nn.Module, move: Move) -> Arena:
    try:
        if block.filled:
            return Arena(module, block.flat, filled=True)
        arena = Arena(module, block.flat, packed=move.went_on)
        block.seal()
        arena.attach(block.flat)
    except BaseException:
        block.release()
        raise
    return arena


def _fingerprint(layout: Layout, tensors: Sequence[torch.Tensor]) -> str:
    """Equal for components whose bytes may be taken for each other's, if they come from equal files."""
    digest = hashlib.sha256(repr(layout).encode())
    for slot, tensor in zip(layout.slots, tensors, strict=True):
        if not slot.in_file and slot.nbytes:
            plain = tensor.detach().contiguous().view(-1).view(torch.uint8)
            digest.update(memoryview(plain.numpy()))
    return digest.hexdigest()[:16]


def _runs_once(source: Component) -> bool:
    return role_of(source.name) == "encoder"
