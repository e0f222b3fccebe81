"""
A component that is too large for the device goes through it block by block, and draws the same.

On the device are what is in no block, the first blocks as far as there is room, and a *ring* of slots that the other
blocks take in turn: while one runs, the next arrives in another slot, on a stream of its own where the device has any.
A block is put in place by the call of any of its modules; its tensors view the host's bytes until then, never a slot that
another block has taken, so that a call that was not foreseen is an error of devices and not a wrong picture.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import torch

from falctl.core.blocks import Block, NamedBytes, blocks_of
from falctl.core.fit import BlockPlan
from falctl.host.cache.arena import Arena, Tier, bind
from falctl.host.cache.device import Device
from falctl.host.cache.layout import ALIGN_BYTES, Layout, Slot
from falctl.host.cache.streams import Copies, InlineCopies, copies_for

_NO_BLOCK: Final = -1


def blocks_in(layout: Layout) -> tuple[Block, ...]:
    """Return the blocks of a component of *layout*; `Block.members` are places in ``layout.slots``, bytes are aligned."""
    # Tied tensors have a slot each, of the same bytes: only together can they be in a block.
    names: dict[tuple[int, int], tuple[str, ...]] = {}
    for slot in layout.slots:
        names[_place(slot)] = names.get(_place(slot), ()) + slot.names
    seen: set[tuple[int, int]] = set()
    tensors = []
    for slot in layout.slots:
        nbytes = 0 if _place(slot) in seen else _aligned(slot.nbytes)
        seen.add(_place(slot))
        tensors.append(NamedBytes(names[_place(slot)] if slot.nbytes else slot.names, nbytes))
    return blocks_of(tensors)


class Offloaded:
    """An `Arena` of which the device never has more than *plan* says; moves as an arena does."""

    def __init__(
        self, modules: Sequence[torch.nn.Module], arena: Arena, *, resident: int, slots: int
    ) -> None:
        """
        Let the first *resident* blocks stay, and the others take turns in *slots*. The arena is in the host tier.

        *modules* are all that have its weights and may be run.
        """
        assert slots >= 1, "a block runs in a slot"
        blocks = blocks_in(arena.layout)
        self._modules = weakref.WeakSet(modules)
        self._arena = arena
        moving = blocks[resident:]
        away = {i for block in moving for i in block.members}
        staying = tuple(i for i in range(len(arena.layout.slots)) if i not in away)
        self._rest = _Group.of(arena, staying)
        self._groups = tuple(_Group.of(arena, block.members) for block in moving)
        self._paths = tuple(block.path for block in moving)
        self._slot_bytes = max((group.nbytes for group in self._groups), default=0)
        self._slots = min(slots, len(moving))
        self._loaded: _Loaded | None = None

    @property
    def nbytes(self) -> int:
        """What it takes on the device: far less than in host memory."""
        return self._rest.nbytes + self._slots * self._slot_bytes

    @property
    def moved_bytes(self) -> int:
        """What a pass through the component copies to the device."""
        return sum(group.nbytes for group in self._groups)

    @property
    def tier(self) -> Tier:
        return "device" if self._loaded is not None else self._arena.tier

    def to_device(self, device: Device) -> None:
        """Put in place what stays, and the slots; blocks for the copy. Raises torch.OutOfMemoryError, changing nothing."""
        if self._loaded is not None:
            return
        host = self._arena.host
        assert self._arena.tier == "host", f"its arena is in the {self._arena.tier} tier"
        assert host is not None
        rest = device.allocate(self._rest.nbytes)
        ring = [device.allocate(self._slot_bytes) for _slot in range(self._slots)]
        self._rest.copy(rest, host, InlineCopies(device))
        self._rest.bind(rest)
        self._loaded = _Loaded(device, _Ring(self._groups, ring, host, copies_for(device)))
        for module in self._modules:
            self._watch(module, self._loaded)

    def evict(self) -> None:
        """Leave the device for the host's bytes, and give its memory back; copies nothing."""
        if self._loaded is None:
            return
        loaded, self._loaded = self._loaded, None
        for handle in loaded.handles:
            handle.remove()
        loaded.device.settle()  # a block may be on its way into a slot
        assert self._arena.host is not None
        bind(self._arena.tensors, self._arena.layout.slots, self._arena.host)
        device = loaded.device
        del loaded  # the ring's slots are given back only when nothing refers to them
        device.give_back()

    def also(self, module: torch.nn.Module) -> None:
        """Have *module*, which has the same weights, find its blocks, too."""
        if module not in self._modules:
            self._modules.add(module)
            if self._loaded is not None:
                self._watch(module, self._loaded)

    def _watch(self, module: torch.nn.Module, loaded: _Loaded) -> None:
        for i, path in enumerate(self._paths):
            for part in module.get_submodule(path).modules():
                loaded.handles.append(part.register_forward_pre_hook(partial(_entered, loaded.ring, i)))


def _entered(ring: _Ring, i: int, _module: torch.nn.Module, _args: Any) -> None:
    ring.enter(i)


def offloaded(modules: Sequence[torch.nn.Module], arena: Arena, plan: BlockPlan) -> Offloaded:
    """Return the *arena* of *modules* as *plan* wants it on the device."""
    return Offloaded(modules, arena, resident=plan.resident, slots=plan.slots)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What exists while a component is on the device."""

    device: Device
    ring: _Ring
    handles: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Run:
    """Bytes that lie together in the host's buffer, and in the group's."""

    host_at: int
    at: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class _Group:
    """Some slots of a component, packed into *nbytes* of their own."""

    tensors: tuple[torch.Tensor, ...]
    slots: tuple[Slot, ...]
    host_slots: tuple[Slot, ...]
    runs: tuple[_Run, ...]
    nbytes: int

    @classmethod
    def of(cls, arena: Arena, members: Sequence[int]) -> _Group:
        host_slots = tuple(arena.layout.slots[i] for i in members)
        starts: dict[int, int] = {}
        runs: list[_Run] = []
        end = 0
        for offset, nbytes in sorted({_place(slot) for slot in host_slots if slot.nbytes}):
            starts[offset] = end
            if runs and runs[-1].host_at + runs[-1].nbytes == offset:
                runs[-1] = replace(runs[-1], nbytes=runs[-1].nbytes + _aligned(nbytes))
            else:
                runs.append(_Run(offset, end, _aligned(nbytes)))
            end += _aligned(nbytes)
        slots = tuple(replace(slot, offset=starts[slot.offset] if slot.nbytes else 0) for slot in host_slots)
        return cls(tuple(arena.tensors[i] for i in members), slots, host_slots, tuple(runs), end)

    def copy(self, flat: torch.Tensor, host: torch.Tensor, copies: Copies) -> object:
        return copies.begin(
            [
                (flat[run.at : run.at + run.nbytes], host[run.host_at : run.host_at + run.nbytes])
                for run in self.runs
            ]
        )

    def bind(self, flat: torch.Tensor) -> None:
        bind(self.tensors, self.slots, flat)

    def bind_to_host(self, host: torch.Tensor) -> None:
        bind(self.tensors, self.host_slots, host)


class _Ring:
    """Who has which slot. The next block is the one that ran after this one the last time, else the next in order."""

    def __init__(
        self, groups: Sequence[_Group], flats: Sequence[torch.Tensor], host: torch.Tensor, copies: Copies
    ) -> None:
        self._groups = groups
        self._flats = flats
        self._host = host
        self._copies = copies
        self._holders = [_NO_BLOCK] * len(flats)
        """The block in each slot."""
        self._turns = list(range(len(flats)))
        """The slots, the one that is free first, or was entered the longest ago, first."""
        self._arriving: dict[int, object] = {}
        self._after = {i: (i + 1) % len(groups) for i in range(len(groups))}
        self._running = _NO_BLOCK
        for flat in flats:
            copies.mark(flat)

    def __deepcopy__(self, memo: object) -> _Ring:
        """Return itself: a module is cloned with its hooks, which must not clone the bytes of the host and the slots."""
        del memo
        return self

    def enter(self, i: int) -> None:
        """Have block *i* in a slot, and the one after it on its way."""
        if i == self._running:
            return
        self._copies.take_over()
        if self._running != _NO_BLOCK:
            self._after[self._running] = i
        self._running = _NO_BLOCK
        if i not in self._holders:
            self._fill(i)
        self._running = i
        slot = self._holders.index(i)
        self._turns.remove(slot)
        self._turns.append(slot)
        if i in self._arriving:
            self._copies.wait(self._arriving.pop(i))
        following = self._after[i]
        if len(self._turns) > 1 and following not in self._holders:
            self._fill(following)

    def _fill(self, i: int) -> None:
        slot = self._turns[0]
        holder = self._holders[slot]
        if holder != _NO_BLOCK:
            self._groups[holder].bind_to_host(self._host)
            self._arriving.pop(holder, None)
        # Whatever becomes of the copy, nobody takes the slot for what was in it.
        self._holders[slot] = _NO_BLOCK
        self._arriving[i] = self._groups[i].copy(self._flats[slot], self._host, self._copies)
        self._groups[i].bind(self._flats[slot])
        self._holders[slot] = i


def _place(slot: Slot) -> tuple[int, int]:
    return slot.offset, slot.nbytes


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGN_BYTES) * ALIGN_BYTES
