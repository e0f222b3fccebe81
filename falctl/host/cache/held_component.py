"""What a store asks of a component that it holds, whichever way its weights move."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

import torch

from falctl.core.fit import BlockPlan
from falctl.core.residency import Part
from falctl.host.cache.device import Device
from falctl.host.cache.folder import Component


class HeldComponent(Protocol):
    """A component that models use. One thread moves it, but for `fill`."""

    module: torch.nn.Module
    users: set[str]
    """The names of the models that it is a part of."""

    @property
    def part(self) -> Part:
        """Return what a cache has to know of it, as it is now."""
        ...

    def fill(self, cancelled: threading.Event) -> None:
        """Bring its bytes into host memory, if they are on the disk only; blocking, any thread."""
        ...

    def has_also(self, source: Component) -> None:
        """Note that the files of *source* have the same bytes as those that it was loaded from."""
        ...

    def to_device(
        self, device: Device, *, filling: bool = False, cancelled: threading.Event | None = None
    ) -> None:
        """
        Bring it onto *device*; blocking.

        From the disk by way of host memory, where its bytes stay, if *filling*, else through small buffers. Whatever it
        raises leaves it where it was: torch.OutOfMemoryError; HostMemoryFullError, if *filling*; LoadCancelledError.
        """
        ...

    @property
    def moved(self) -> int:
        """Return how many bytes of it were read and copied since its way from the disk began; 0: it is not on it."""
        ...

    def evict(self) -> None:
        """Take it off its device; returns when the memory can be had again."""
        ...

    def drop(self) -> None:
        """Let go of its host memory, if its files can bring it back; proves that first, once."""
        ...

    def forget(self) -> None:
        """Let go of all of its bytes; it cannot be used again."""
        ...

    def abandon(self) -> None:
        """Leave its bytes to whoever still uses the module, and let go of them with it."""
        ...

    @property
    def beside_bytes(self) -> int:
        """Return what a call of it takes beside its weights and its drawing: a float8 weight, converted up."""
        ...

    @property
    def blocks(self) -> tuple[int, ...]:
        """Return the bytes of the blocks that can come and go one after the other; () where it cannot be divided."""
        ...

    @property
    def whole_bytes(self) -> int:
        """Return what all of it takes on a device."""
        ...

    @property
    def device_bytes(self) -> int:
        """Return what it takes on a device as it is to come there now: see `offload`."""
        ...

    def offload(self, plan: BlockPlan | None, modules: Sequence[torch.nn.Module]) -> None:
        """
        Have it come onto a device as *plan* says from now on, None: whole; one that is there otherwise leaves.

        *modules* are those with its weights that may be run.

        Raises ModelTooLargeError where its bytes have no room in host memory, from which the blocks come.
        """
        ...
