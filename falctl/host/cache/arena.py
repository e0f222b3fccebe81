"""
One component's weights in one flat buffer, so that a move is one allocation, one copy and a re-bind.

    tier        the tensors view      what is held
    device      the device's buffer   that, and the host's buffer
    host        the host's buffer     that
    skeleton    nothing (empty)       the modules, and the bytes that no weight file has

`evict` copies nothing back, so what was written to a weight on the device is forgotten, and the next load is bit for
bit the first one. For the same reason nobody may write to a weight in the host tier: fusing a LoRA would be for ever.
Python's modules and Parameter objects stay the same in every tier. One thread at a time, and none of these while the
component runs; a change of tier that raises has changed nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
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


class Arena:
    """The weights of *module*, packed: in the host tier at first. Whoever else holds its tensors sees them move, too."""

    def __init__(self, module: torch.nn.Module) -> None:
        """
        Copy every weight of *module*, which must be in host memory, into one host buffer; blocks for the copy.

        Each weight's own memory is freed as it is copied. Raises `NotPackableError`, or OSError when there is no
        memory for the buffer; *module* is as it was then.
        """
        self.layout, self._tensors = survey(module)
        self._kept: tuple[torch.Tensor, ...] = ()
        self._device: Device | None = None
        flat = host_buffer(self.layout.nbytes)
        done: set[tuple[int, int]] = set()
        slots = self.layout.slots
        with torch.no_grad():
            for tensor, slot, view in zip(self._tensors, slots, views(slots, flat), strict=True):
                place = (slot.offset, slot.nbytes)  # an empty slot is where the next one begins
                if place not in done:
                    view.copy_(tensor)
                    done.add(place)
                tensor.data = view
        self._host: torch.Tensor | None = flat

    @property
    def tier(self) -> Tier:
        if self._device is not None:
            return "device"
        return "skeleton" if self._host is None else "host"

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
        assert self._device is None, "evict it from one device before it goes to another"
        assert self._host is not None, "a skeleton has no bytes; attach them first"
        flat = device.allocate(self.nbytes)
        device.copy_in(flat, self._host)
        bind(self._tensors, self.layout.slots, flat)
        self._device = device

    def evict(self) -> None:
        """Leave the device for the host's bytes, and give its memory back; copies nothing. Nothing to do elsewhere."""
        if self._device is None:
            return
        assert self._host is not None
        bind(self._tensors, self.layout.slots, self._host)
        device, self._device = self._device, None
        device.give_back()

    def to_skeleton(self) -> None:
        """Drop the bytes, on the device and the host's, but for those that no weight file has. The module cannot run."""
        if self._host is None:
            return
        self.evict()
        self._kept = tuple(view.clone() for view in views(self._slots_kept, self._host))
        for tensor, slot in zip(self._tensors, self.layout.slots, strict=True):
            tensor.data = torch.empty(0, dtype=slot.dtype)
        self._host = None

    def write_kept(self, host: torch.Tensor) -> None:
        """Write the bytes that no weight file has into *host*, beside those that were read from files; skeletons only."""
        for view, kept in zip(views(self._slots_kept, host), self._kept, strict=True):
            view.copy_(kept)

    def attach(self, host: torch.Tensor) -> None:
        """
        Take *host*, which has the bytes of every slot, as the weights of a skeleton; copies and writes nothing.

        Raises ValueError when the buffer is not of `nbytes` bytes; it is a skeleton still.
        """
        assert self.tier == "skeleton", f"it is in the {self.tier} tier, with bytes of its own"
        if host.shape != (self.nbytes,):
            msg = f"a buffer of {tuple(host.shape)} for weights of {self.nbytes} bytes"
            raise ValueError(msg)
        bind(self._tensors, self.layout.slots, host)
        self._host = host
        self._kept = ()

    @property
    def _slots_kept(self) -> tuple[Slot, ...]:
        return tuple(slot for slot in self.layout.slots if not slot.in_file)
