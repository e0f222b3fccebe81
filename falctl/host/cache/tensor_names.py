"""
Which tensor of a component's files makes which slot of its layout, proved by their bytes.

Names agree as a rule, but libraries rename what they load (CLIP's `text_model.`, the attention of old VAEs), and nothing
tells of it afterwards. So a slot's tensor is looked for under its names, then by what it holds; in either case it is
taken only if its bytes, converted to the slot's dtype, are the slot's. A slot for which none is found means that the
files do not say what the component is: it was fused, split or initialised at random.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Final

import torch

from falctl.host.cache.buffers import host_buffer
from falctl.host.cache.folder import Component
from falctl.host.cache.headers import TensorEntry, WeightFile
from falctl.host.cache.layout import Layout, Slot
from falctl.host.cache.reading import HEADER_DTYPES, Placement, read_weights

_BATCH_BYTES: Final = 64 << 20
_Tensor = tuple[WeightFile, TensorEntry]


def find_placements(component: Component, layout: Layout, flat: torch.Tensor) -> tuple[Placement, ...] | None:
    """
    Return what of the files of *component* goes where in a buffer of *layout*, or None where a slot has no equal.

    *flat* is such a buffer, filled. Blocking: reads the files once, and those tensors again whose names are not the
    module's; holds 64 MiB, or the largest tensor, beside it.

    Raises:
        ModelFilesError: a file is not what it was when its header was read.

    """
    tensors = [(file, tensor) for file in component.weights for tensor in file.tensors]
    places = {slot.offset: slot for slot in layout.slots if slot.in_file and slot.nbytes}
    if any(slot.dtype not in HEADER_DTYPES for slot in places.values()):
        return None
    proved = {p.offset: p for p in _equal_to(flat, _by_name(tensors, layout.slots))}
    lost = [slot for offset, slot in places.items() if offset not in proved]
    proved |= {p.offset: p for p in _by_content(tensors, lost, flat)}
    return tuple(proved.values()) if proved.keys() == places.keys() else None


def moved_to(
    other: Component, placements: Iterable[Placement], component: Component
) -> tuple[Placement, ...]:
    """Return *placements* of the files of *component* as those of *other*, whose files are equal one by one."""
    twins = {a.path: b for a, b in zip(component.weights, other.weights, strict=True)}
    return tuple(replace(placement, file=twins[placement.file.path]) for placement in placements)


def _by_name(tensors: Iterable[_Tensor], slots: Iterable[Slot]) -> Iterator[Placement]:
    named = {tensor.name: (file, tensor) for file, tensor in tensors}
    for slot in slots:
        for name in slot.names if slot.in_file and slot.nbytes else ():
            if name in named and _fits(slot, named[name][1]):
                yield _placed(slot, named[name])


def _equal_to(flat: torch.Tensor, wanted: Iterable[Placement]) -> Iterator[Placement]:
    for placement, read in _contents(wanted):
        if torch.equal(read, flat[placement.offset :][: placement.size_bytes]):
            yield placement


def _by_content(tensors: Iterable[_Tensor], lost: Sequence[Slot], flat: torch.Tensor) -> Iterator[Placement]:
    """Yield, for those of *lost* that have one, a tensor that holds what they hold."""
    wanted: dict[tuple[str, bytes], list[Slot]] = {}
    for slot in lost:
        held = _digest(flat[slot.offset :][: slot.nbytes])
        wanted.setdefault((HEADER_DTYPES[slot.dtype], held), []).append(slot)
    forms = {(slot.dtype, slot.nbytes): slot for slot in lost}.values()
    tried = [_placed(slot, one) for slot in forms for one in tensors if _fits(slot, one[1])]
    for placement, read in _contents(tried):
        for slot in wanted.get((placement.dtype, _digest(read)), ()):
            yield replace(placement, offset=slot.offset)


def _contents(wanted: Iterable[Placement]) -> Iterator[tuple[Placement, torch.Tensor]]:
    """Yield each of *wanted* with the bytes that it would put into a buffer; they are there until the next."""
    for batch in _batches(wanted):
        ends = list(accumulate(placement.size_bytes for placement in batch))
        scratch = host_buffer(ends[-1])
        begins = [0, *ends[:-1]]
        moved = [replace(placement, offset=at) for placement, at in zip(batch, begins, strict=True)]
        read_weights(memoryview(scratch.numpy()), moved, cancelled=threading.Event())
        for placement, begin, end in zip(batch, begins, ends, strict=True):
            yield placement, scratch[begin:end]


def _batches(wanted: Iterable[Placement]) -> Iterator[list[Placement]]:
    batch: list[Placement] = []
    size_bytes = 0
    for placement in wanted:
        if batch and size_bytes + placement.size_bytes > _BATCH_BYTES:
            yield batch
            batch, size_bytes = [], 0
        batch.append(placement)
        size_bytes += placement.size_bytes
    if batch:
        yield batch


def _placed(slot: Slot, tensor: _Tensor) -> Placement:
    return Placement(*tensor, offset=slot.offset, dtype=HEADER_DTYPES[slot.dtype])


def _fits(slot: Slot, tensor: TensorEntry) -> bool:
    return bool(tensor.numel * slot.dtype.itemsize == slot.nbytes)


def _digest(flat: torch.Tensor) -> bytes:
    return hashlib.sha256(memoryview(flat.numpy())).digest()
