"""
One component's weights in one flat buffer, so that a move is one allocation, one copy and a re-bind.

    tier        the tensors view      what is held
    device      the device's buffer   that, and the host's buffer unless it was dropped
    host        the host's buffer     that
    skeleton    nothing (empty)       the modules, and the bytes that no weight file has

`evict` copies nothing back, so what was written to a weight on the device is forgotten, and the next load is bit for
bit the first one. For the same reason nobody may write to a weight in the host tier: fusing a LoRA would be for ever.
Python's modules and Parameter objects stay the same in every tier. One thread at a time, and none of these while the
component runs; a change of tier that raises has changed nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch

from falctl.host.cache.buffers import host_buffer
from falctl.host.cache.device import Device
from falctl.host.cache.layout import Slot, survey, views

Tier = Literal["device", "host", "skeleton"]


def bind(tensors: Sequence[torch.Tensor], slots: Sequence[Slot], flat: torch.Tensor) -> None:
    """Make ``tensors[i]`` the view of *flat* that ``slots[i]`` describes; some microseconds a tensor, no bytes move."""
    with torch.no_grad():
        for tensor, view in zip(tensors, views(slots, flat), strict=True):
            tensor.data = view


def _nobody(nbytes: int) -> None:
    del nbytes


class Arena:
    """The weights of *module*, packed: in the host tier at first. Whoever else holds its tensors sees them move, too."""

    def __init__(
        self,
        module: torch.nn.Module,
        host: torch.Tensor | None = None,
        *,
        filled: bool = False,
        packed: Callable[[int], None] = _nobody,
    ) -> None:
        """
        Copy every weight of *module*, which must be in host memory, into one host buffer; blocks for the copy.

        The buffer is *host*, `survey`'s `nbytes` long, or a new one; *filled*: it has these very bytes, so that none is
        copied. Each weight's own memory is freed as it is copied. Raises `NotPackableError`, or OSError when there is
        no memory for the buffer, or ValueError when it has another length; *module* is as it was then. *packed* is told the
        bytes of each copy; what that raises leaves *module* in pieces.
        """
        self.layout, self._tensors = survey(module)
        self._buffers = tuple(_buffers_of(module))
        self._kept: tuple[torch.Tensor, ...] = ()
        self._device: Device | None = None
        flat = host_buffer(self.layout.nbytes) if host is None else host
        self._require_length(flat)
        for tensor in self._tensors:
            if tensor._is_view():  # noqa: SLF001 - torch has no other way
                # A view keeps the memory that it is a view of (a mapped file, say), wherever its data is put.
                torch.utils.swap_tensors(tensor, tensor.data)
        if filled:
            bind(self._tensors, self.layout.slots, flat)
        else:
            self._pack(flat, packed)
        self._host: torch.Tensor | None = flat

    def _pack(self, flat: torch.Tensor, packed: Callable[[int], None]) -> None:
        done: set[tuple[int, int]] = set()
        slots = self.layout.slots
        with torch.no_grad():
            for tensor, slot, view in zip(self._tensors, slots, views(slots, flat), strict=True):
                place = (slot.offset, slot.nbytes)  # an empty slot is where the next one begins
                if place not in done:
                    view.copy_(tensor)
                    done.add(place)
                    packed(slot.nbytes)
                tensor.data = view

    @property
    def tier(self) -> Tier:
        if self._device is not None:
            return "device"
        return "skeleton" if self._host is None else "host"

    @property
    def device(self) -> Device | None:
        """The device that it is on; None elsewhere."""
        return self._device

    @property
    def nbytes(self) -> int:
        """What it takes on a device, and in host memory."""
        return self.layout.nbytes

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The module's tensors, in the order of ``layout.slots``."""
        return self._tensors

    @property
    def host(self) -> torch.Tensor | None:
        """The host's flat buffer; None in the skeleton tier."""
        return self._host

    def to_device(self, device: Device) -> None:
        """
        Load it onto *device*: blocks for the one copy. Does nothing when it is there already.

        Raises torch.OutOfMemoryError with every tensor where it was.
        """
        if self._device is device:
            return
        assert self._host is not None, "a skeleton has no bytes; attach them first"
        flat = device.allocate(self.nbytes)
        device.copy_in(flat, self._host)
        self.settle(device, flat)

    def settle(self, device: Device, flat: torch.Tensor) -> None:
        """
        Be on *device*, where *flat* has the bytes of every slot; copies nothing.

        Raises ValueError when the buffer is not of `nbytes` bytes; nothing has changed then.
        """
        assert self._device is None, "evict it from one device before it goes to another"
        self._require_length(flat)
        self._bind(flat)
        self._device = device

    def evict(self) -> None:
        """
        Leave the device, and give its memory back; copies nothing. Nothing to do elsewhere.

        Its weights are the host's bytes again, or none where those were dropped: a skeleton.
        """
        if self._device is None:
            return
        self._device.settle()
        self._bind(self._host)
        device, self._device = self._device, None
        device.give_back()

    def drop_host(self) -> None:
        """Drop the host's bytes, but for those that no weight file has; off a device that leaves a skeleton."""
        if self._host is None:
            return
        self._kept = tuple(view.clone() for view in views(self._slots_kept, self._host))
        self._host = None
        if self._device is None:
            self._bind(None)

    def kept(self) -> torch.Tensor:
        """Return a copy of the bytes that no weight file has, as they lie behind those of files; where `host` is None."""
        begin = self.layout.file_nbytes
        flat = torch.zeros(self.nbytes - begin, dtype=torch.uint8)
        slots = [replace(slot, offset=slot.offset - begin) for slot in self._slots_kept]
        for view, kept in zip(views(slots, flat), self._kept, strict=True):
            view.copy_(kept)
        return flat

    def attach(self, host: torch.Tensor) -> None:
        """
        Take *host*, which has the bytes of every slot, as its host's bytes; copies and writes nothing.

        They are for one that has none, or in place of equal ones elsewhere. Raises ValueError when the buffer is not of
        `nbytes` bytes; nothing has changed then.
        """
        self._require_length(host)
        if self._device is None:
            self._bind(host)
        self._host = host
        self._kept = ()

    def _bind(self, flat: torch.Tensor | None) -> None:
        for owner, name, tensor in self._buffers:
            # `.to(dtype)` of a pipeline, such as SDXL's of its VAE, puts new objects in the place of buffers.
            owner._buffers[name] = tensor  # noqa: SLF001 - setattr would look for a Parameter of that name
        if flat is not None:
            bind(self._tensors, self.layout.slots, flat)
            return
        for tensor, slot in zip(self._tensors, self.layout.slots, strict=True):
            tensor.data = torch.empty(0, dtype=slot.dtype)

    def _require_length(self, flat: torch.Tensor) -> None:
        if flat.shape != (self.nbytes,):
            msg = f"a buffer of {tuple(flat.shape)} for weights of {self.nbytes} bytes"
            raise ValueError(msg)

    @property
    def _slots_kept(self) -> tuple[Slot, ...]:
        return tuple(slot for slot in self.layout.slots if not slot.in_file)


def _buffers_of(module: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str, torch.Tensor]]:
    for owner in module.modules():
        for name, tensor in owner._buffers.items():  # noqa: SLF001 - which module holds it is what we need
            if tensor is not None:
                yield owner, name, tensor
