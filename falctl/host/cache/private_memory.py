"""
Host memory of one process: a copy of each key's bytes in an anonymous mapping, at most *budget_bytes* of them.

For runners that no supervisor gives shared memory to, and for tests. A block's bytes are there as long as somebody has
it, and are unmapped with the last tensor that views them; the budget counts blocks, not views.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch

from falctl.errors import HostMemoryFullError
from falctl.host.cache.buffers import host_buffer
from falctl.host.cache.stopping import stop_if
from falctl.toolkit.cancel import LOOK_S


@dataclass(eq=False, slots=True)
class _Copy:
    """The one copy of a key; *owners* have it or wait to fill it."""

    flat: torch.Tensor
    filled: bool = False
    owners: int = 0


class PrivateMemory:
    """A `HostMemory` without a second process. *budget_bytes*: None is no limit."""

    def __init__(self, budget_bytes: int | None = None) -> None:
        self.budget_bytes = budget_bytes
        self._copies: dict[str, _Copy] = {}
        self._changed = threading.Condition()

    @property
    def used_bytes(self) -> int:
        """Return the bytes of all blocks that somebody has."""
        with self._changed:
            return self._used()

    def obtain(self, key: str, nbytes: int, *, cancelled: threading.Event | None = None) -> PrivateBlock:
        """Return the block of *key*; see `HostMemory`. Whoever has one that it has not filled must not ask again."""
        with self._changed:
            while not self._changed.wait_for(lambda: self._is_mine_or_filled(key), LOOK_S):
                stop_if(cancelled)
            copy = self._copies.get(key)
            if copy is None:
                copy = self._copies[key] = self._allocate(nbytes)
            assert copy.flat.numel() == nbytes, f"{key} has {copy.flat.numel()} bytes, not {nbytes}"
            copy.owners += 1
            return PrivateBlock(self, key, copy)

    def _is_mine_or_filled(self, key: str) -> bool:
        return key not in self._copies or self._copies[key].filled

    def _used(self) -> int:
        return sum(copy.flat.numel() for copy in self._copies.values())

    def _allocate(self, nbytes: int) -> _Copy:
        if self.budget_bytes is not None and (lacking := self._used() + nbytes - self.budget_bytes) > 0:
            msg = f"{nbytes} bytes of host memory are needed, {nbytes - lacking} of {self.budget_bytes} are free"
            raise HostMemoryFullError(msg, lacking_bytes=lacking)
        try:
            return _Copy(host_buffer(nbytes))
        except OSError as error:
            msg = f"the kernel refused {nbytes} bytes of host memory: {error}"
            raise HostMemoryFullError(msg) from error

    def seal(self, copy: _Copy) -> None:
        """Tell those who wait for *copy* that it is filled."""
        with self._changed:
            copy.filled = True
            self._changed.notify_all()

    def release(self, key: str, copy: _Copy) -> None:
        """Count one owner less; the last one takes the copy along, and so does one who has not filled it."""
        with self._changed:
            copy.owners -= 1
            if copy.owners == 0 or not copy.filled:
                del self._copies[key]
            self._changed.notify_all()


class PrivateBlock:
    """A `HostBlock` of a `PrivateMemory`."""

    def __init__(self, memory: PrivateMemory, key: str, copy: _Copy) -> None:
        self._memory = memory
        self._key = key
        self._copy: _Copy | None = copy

    @property
    def flat(self) -> torch.Tensor:
        assert self._copy is not None, "a block that was released has no bytes"
        return self._copy.flat

    @property
    def filled(self) -> bool:
        return self._copy is not None and self._copy.filled

    def seal(self) -> None:
        assert self._copy is not None, "a block that was released cannot be sealed"
        self._memory.seal(self._copy)

    def release(self) -> None:
        copy, self._copy = self._copy, None
        if copy is not None:
            self._memory.release(self._key, copy)
