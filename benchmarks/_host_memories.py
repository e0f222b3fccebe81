"""The kinds of host memory that a model's bytes may be in, for a process that measures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

import torch

from falctl.host.cache.host_memory import HostMemory
from falctl.host.cache.pinning import card_pinning
from falctl.host.cache.private_memory import PrivateMemory
from falctl.host.cache.shared_memory import SharedMemory
from falctl.supervisor.host_memory import HostMemory as SupervisedMemory
from tests.supervisor.memory_server import MemoryServer
from tests.wait import until

MEMORIES: Final = ("shared", "private")
_SETTLED_S: Final = 60.0


class Memory(Protocol):
    """Host memory of one kind, and how to have it let go of what nobody uses."""

    @property
    def memory(self) -> HostMemory:
        """Return what a store is made with."""
        ...

    def used_bytes(self) -> int:
        """Return what is in use, after `settle`."""
        ...

    def settle(self, used_bytes: int) -> None:
        """Return when *used_bytes* are in use and nothing else is held."""
        ...


class Private:
    """Of this process: what is not used is gone."""

    def __init__(self) -> None:
        self.memory = PrivateMemory()

    def used_bytes(self) -> int:
        """Return 0: it is not counted."""
        return 0

    def settle(self, used_bytes: int) -> None:
        """Do nothing."""


class Shared:
    """As runners have it: blocks that the supervisor holds, registered with CUDA where there is a card."""

    def __init__(self, server: MemoryServer) -> None:
        self._server = server
        self.memory = SharedMemory(server.connect(0)[1], pinning=card_pinning())

    def used_bytes(self) -> int:
        return self._server.row.used_bytes

    def settle(self, used_bytes: int) -> None:
        """Have the supervisor drop what it keeps for the next who asks; the news of an end takes a moment."""

        def held(memory: SupervisedMemory) -> tuple[int, int]:
            memory.tick(lambda: 0)
            return memory.row.used_bytes, memory.row.held_bytes

        def settled() -> bool:
            return self._server.call(held) == (used_bytes, used_bytes)

        until(settled, within_s=_SETTLED_S, what=f"{used_bytes} bytes are in use")
        # The pages are given back to the kernel before anything else is given.
        self.memory.obtain("probe", 1).release()
        until(settled, within_s=_SETTLED_S, what=f"{used_bytes} bytes are in use")


@contextmanager
def memory_of(kind: str, *, budget_bytes: int) -> Iterator[Memory]:
    """Give host memory of *kind*, one of `MEMORIES`."""
    if kind == "private":
        yield Private()
        return
    cuda = torch.cuda.is_available()
    with MemoryServer(budget_bytes, keep_alive_s=0.0, registers=cuda) as server:
        yield Shared(server)
