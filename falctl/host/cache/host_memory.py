"""
Host memory for weights, by content: whoever wants the bytes of a key gets the one copy that there is.

The first who asks for a key fills the block that it is given and *seals* it; the others get it filled. From then on
nobody writes to it.
"""

from __future__ import annotations

import threading
from typing import Protocol

import torch

from falctl.errors import HostMemoryFullError

__all__ = ["HostBlock", "HostMemory", "HostMemoryFullError"]


class HostBlock(Protocol):
    """A reference to the one copy of a component's bytes; `release` it when no tensor views it any more."""

    @property
    def flat(self) -> torch.Tensor:
        """The bytes, flat uint8: writable until `seal`, only to be read after."""
        ...

    @property
    def filled(self) -> bool:
        """Whether the bytes are there: somebody has sealed them."""
        ...

    def seal(self) -> None:
        """Declare the bytes complete; views of `flat` that were made before must be made anew. Fillers only."""
        ...

    def release(self) -> None:
        """Give the reference back, sealed or not; an unsealed block is forgotten. May be called twice."""
        ...


class HostMemory(Protocol):
    """Gives blocks. Thread-safe."""

    def obtain(self, key: str, nbytes: int, *, cancelled: threading.Event | None = None) -> HostBlock:
        """
        Return the block of *key*, to be filled by the caller unless it is; blocks while another runner fills it.

        Raises `HostMemoryFullError`, and `LoadCancelledError` where *cancelled* is set while it waits: the other's
        fill goes on, and nothing is held.
        """
        ...
