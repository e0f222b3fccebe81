"""
Where each tensor of one component lies in a flat buffer of bytes.

A slot is the bytes of one tensor, or of several that are the same bytes (tied weights); it begins at a multiple of 512,
as CUDA's allocator would place it, so that kernels choose as they would for tensors of their own. Slots whose bytes a
weight file has come first; after them those that only the constructor can make (buffers that are not persistent), so
that `Layout.file_nbytes` divides what can be read again from what has to be kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from falctl.errors import FalctlError

ALIGN_BYTES: Final = 512

_PLAIN: Final = (torch.Tensor, torch.nn.Parameter)


class NotPackableError(FalctlError):
    """A component cannot live in a flat buffer and has to be moved by ``.to()``; the message says which tensor and why."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor's place and form. *names* are its names in the module: several when it is tied."""

    names: tuple[str, ...]
    offset: int
    nbytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    in_file: bool
    """Whether a weight file has it, by one of its names."""


@dataclass(frozen=True, slots=True)
class Layout:
    """All slots of a component: ``slots[i]`` is the place of the i-th tensor of the `survey` that made it."""

    slots: tuple[Slot, ...]
    nbytes: int
    """The whole buffer, a multiple of 512."""
    file_nbytes: int
    """How much of it, from its beginning, comes from weight files; the rest does not depend on them."""


@dataclass(slots=True)
class _Found:
    """A tensor of a module, under every name that it has there."""

    tensor: torch.Tensor
    names: list[str]
    persistent: bool


def survey(module: torch.nn.Module) -> tuple[Layout, tuple[torch.Tensor, ...]]:
    """
    Return where each tensor of *module* goes, and the tensors: parameters and buffers, each object once.

    Strides are kept where the tensor has no gaps (channels_last has none), else they become contiguous. Reads no
    weights and changes nothing. Raises `NotPackableError`.
    """
    found = _tensors_of(module)
    for one in found:
        _refuse_what_is_no_plain_tensor(one)
    places = _places(found)
    slots: list[Slot] = [_slot(one, places[i]) for i, one in enumerate(found)]
    file_end = max((s.offset + s.nbytes for s in slots if s.in_file), default=0)
    end = max((s.offset + s.nbytes for s in slots), default=0)
    layout = Layout(tuple(slots), nbytes=_aligned(end), file_nbytes=_aligned(file_end))
    return layout, tuple(one.tensor for one in found)


def views(slots: Sequence[Slot], flat: torch.Tensor) -> Iterable[torch.Tensor]:
    """
    Yield each slot's tensor as a view of *flat*, a buffer of the layout's size on any device; copies nothing.

    Raises ValueError when the buffer is too short, or is not one of bytes.
    """
    needed = _aligned(max((s.offset + s.nbytes for s in slots), default=0))
    if flat.dtype != torch.uint8 or flat.dim() != 1 or flat.numel() < needed:
        msg = f"{needed} flat bytes are needed, not {tuple(flat.shape)} of {flat.dtype}"
        raise ValueError(msg)
    typed = {dtype: flat[:needed].view(dtype) for dtype in {s.dtype for s in slots}}
    for slot in slots:
        whole = typed[slot.dtype]
        first = whole.storage_offset() + slot.offset // slot.dtype.itemsize
        yield whole.as_strided(slot.shape, slot.stride, first)


def _tensors_of(module: torch.nn.Module) -> list[_Found]:
    """Each tensor object once, in the module's order."""
    found: dict[int, _Found] = {}
    passing = _names_that_are_not_saved(module)
    everything: list[tuple[str, torch.Tensor]] = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    for name, tensor in everything:
        one = found.setdefault(id(tensor), _Found(tensor, [], persistent=False))
        one.names.append(name)
        one.persistent |= name not in passing
    return list(found.values())


def _names_that_are_not_saved(module: torch.nn.Module) -> set[str]:
    names: set[str] = set()
    for path, part in module.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        names |= {prefix + name for name in part._non_persistent_buffers_set}  # noqa: SLF001 - torch has no other way
    return names


def _refuse_what_is_no_plain_tensor(one: _Found) -> None:
    tensor = one.tensor
    # Quantised weights are subclasses of Parameter or of Tensor, with state beside their bytes.
    if type(tensor) not in _PLAIN or type(tensor.data) is not torch.Tensor:
        reason = f"is a {type(tensor).__module__}.{type(tensor).__qualname__}"
    elif tensor.is_quantized or tensor.layout != torch.strided or tensor.is_nested:
        reason = f"is stored as {tensor.dtype}, {tensor.layout}"
    elif tensor.is_conj() or tensor.is_neg():
        reason = "is a conjugated or negated view"
    elif tensor.device.type != "cpu":
        reason = f"is on {tensor.device.type}, not in host memory"
    else:
        return
    msg = f"{one.names[0]} {reason}"
    raise NotPackableError(msg)


def _places(found: Sequence[_Found]) -> list[tuple[int, int, bool]]:
    """Return each tensor's offset, bytes and whether a file has them; tensors of the same bytes share them."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, one in enumerate(found):
        groups.setdefault(_identity(one.tensor, i), []).append(i)
    _refuse_overlaps(found, [members[0] for members in groups.values()])
    in_file = {key: any(found[i].persistent for i in members) for key, members in groups.items()}
    places: list[tuple[int, int, bool]] = [(0, 0, True)] * len(found)
    end = 0
    for key in sorted(
        groups, key=lambda key: not in_file[key]
    ):  # stable: the module's order within each part
        nbytes = _nbytes(found[groups[key][0]].tensor)
        for i in groups[key]:
            places[i] = (end, nbytes, in_file[key])
        end = _aligned(end + nbytes)
    return places


def _identity(tensor: torch.Tensor, number: int) -> tuple[Any, ...]:
    """Equal for tensors that are the same elements in memory."""
    if tensor.numel() == 0:
        return (number,)  # no bytes, and a pointer that says nothing
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _refuse_overlaps(found: Sequence[_Found], firsts: Iterable[int]) -> None:
    """Tensors that share some bytes but are not the same would come apart."""
    ranges = sorted(
        (start, start + _span_bytes(found[i].tensor), i)
        for i in firsts
        if found[i].tensor.numel()
        for start in [found[i].tensor.data_ptr()]
    )
    furthest, owner = 0, 0
    for start, end, i in ranges:
        if start < furthest:
            msg = f"{found[i].names[0]} shares some of the memory of {found[owner].names[0]}"
            raise NotPackableError(msg)
        furthest, owner = end, i


def _slot(one: _Found, place: tuple[int, int, bool]) -> Slot:
    offset, nbytes, in_file = place
    shape = tuple(one.tensor.shape)
    stride = one.tensor.stride() if _has_no_gaps(shape, one.tensor.stride()) else _contiguous(shape)
    return Slot(tuple(one.names), offset, nbytes, one.tensor.dtype, shape, stride, in_file)


def _nbytes(tensor: torch.Tensor) -> int:
    return int(tensor.numel() * tensor.element_size())


def _span_bytes(tensor: torch.Tensor) -> int:
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return int((1 + sum((size - 1) * step for size, step in steps)) * tensor.element_size())


def _has_no_gaps(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether the elements fill their memory exactly, in whatever order of dimensions."""
    if 0 in shape:
        return True
    expected = 1
    for step, size in sorted((step, size) for step, size in zip(stride, shape, strict=True) if size > 1):
        if step != expected:
            return False
        expected *= size
    return True


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGN_BYTES) * ALIGN_BYTES
