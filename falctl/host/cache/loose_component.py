"""
A held component that cannot be packed, as quantised weights are tensors of their own kinds.

It moves by ``.to()``, tensor by tensor, and its bytes stay in memory until it is forgotten.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Sequence

import torch

from falctl.core.fit import BlockPlan
from falctl.core.residency import Part
from falctl.host.cache.device import Device
from falctl.host.cache.folder import Component
from falctl.host.cache.stopping import stop_if


class LooseComponent:
    """A component that moves tensor by tensor."""

    blocks: tuple[int, ...] = ()
    beside_bytes = 0
    moved = 0

    def __init__(self, module: torch.nn.Module, *, key: str, once: bool) -> None:
        self.module = module
        self.users: set[str] = set()
        self._key = key
        self._nbytes = _element_bytes(module)
        self._once = once
        self._device: Device | None = None
        self._reserved: torch.Tensor | None = None

    @property
    def part(self) -> Part:
        here = self._device is None
        return Part(self._key, self._nbytes, "ram" if here else "vram", host=here, once=self._once)

    @property
    def whole_bytes(self) -> int:
        return self._nbytes

    @property
    def device_bytes(self) -> int:
        return self._nbytes

    def offload(self, plan: BlockPlan | None, modules: Sequence[torch.nn.Module]) -> None:
        del modules
        assert plan is None, "it has no blocks"

    def has_also(self, source: Component) -> None:
        """Do nothing: it never reads its files again."""

    def fill(self, cancelled: threading.Event) -> None:
        """Do nothing: its bytes are never on the disk only."""

    def to_device(
        self, device: Device, *, filling: bool = False, cancelled: threading.Event | None = None
    ) -> None:
        del filling
        stop_if(cancelled)
        if self._device is not None:
            return
        try:
            if device.torch_device.type == "cpu":
                # Its tensors are where they have to be already; the budget counts them all the same.
                self._reserved = device.allocate(self._nbytes)
            else:
                self._move(device.torch_device)
        except torch.OutOfMemoryError:
            self._move(torch.device("cpu"))  # some of its tensors had moved
            device.give_back()
            raise
        self._device = device

    def evict(self) -> None:
        if self._device is None:
            return
        self._device.settle()
        self._move(torch.device("cpu"))
        self._reserved = None
        device, self._device = self._device, None
        gc.collect()
        device.give_back()

    def drop(self) -> None:
        """Do nothing: what a quantised weight is made of cannot be put back byte by byte."""

    def forget(self) -> None:
        self.evict()

    def abandon(self) -> None:
        """Do nothing: its tensors are the module's own."""

    def _move(self, where: torch.device) -> None:
        # The class's method: staging puts another on the module, which would have it moved, by this, first.
        type(self.module).to(self.module, where)


def _element_bytes(module: torch.nn.Module) -> int:
    tensors = {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
