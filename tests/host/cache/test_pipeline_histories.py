"""Any history of a cache of real pipelines: every picture is right, no budget is exceeded, at the end nothing is held."""

from __future__ import annotations

import gc
import random
import socket
import threading
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import pytest

from falctl.host.cache.host_memory import HostMemory
from falctl.host.cache.shared_memory import SharedMemory
from tests.host.cache.histories import NAMES, History
from tests.host.cache.stores import FolderOf
from tests.supervisor.memory_server import MemoryServer

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"  # diffusers' schedulers
)


@pytest.mark.parametrize("seed", range(2))
def test_every_picture_is_right_and_nothing_stays_held(folder_of: FolderOf, seed: int) -> None:
    history = History(folder_of, random.Random(seed))
    for _ in range(16):
        history.step()
    history.end()
    assert history.held_host_bytes() == 0


class Noting(SharedMemory):
    """Knows how large the blocks are that were asked for."""

    def __init__(self, channel: socket.socket, sizes: dict[str, int]) -> None:
        super().__init__(channel)
        self._sizes = sizes

    def obtain(self, key: str, nbytes: int, *, cancelled: threading.Event | None = None) -> Any:
        self._sizes[key] = nbytes
        return super().obtain(key, nbytes, cancelled=cancelled)


class SharedHistory(History):
    """One over the memory that runners share: runner 0. It dies now and then, and so do its neighbours."""

    def __init__(self, folder_of: FolderOf, dice: random.Random, stack: ExitStack) -> None:
        self._stack = stack
        self._sizes: dict[str, int] = {}
        super().__init__(folder_of, dice)

    @cached_property
    def server(self) -> MemoryServer:
        return self._stack.enter_context(MemoryServer(self.host_bytes))

    def new_memory(self) -> HostMemory:
        self._holder, channel = self.server.connect(0)
        memory = Noting(channel, self._sizes)
        self._stack.callback(memory.close)
        return memory

    def held_host_bytes(self) -> int:
        return max((row.held_bytes for row in self.server.rows), default=0)

    def die(self) -> None:
        """End as by SIGKILL, as far as the supervisor can see: its references go, the successor has none."""
        self.server.call(lambda memory: memory.bury(self._holder))
        self.begin()

    def lose_neighbour(self) -> None:
        """Have a neighbour take all of the memory, give it back, begin to fill a block of ours, and kill it then."""
        for name in self.cache.pinned:
            self.cache.unpin(name)
        for name in NAMES:
            self.cache.evict(name, "disk")
        gc.collect()
        self.server.wait_used(0)
        neighbour = self.server.start(1)
        key = self.dice.choice(sorted(key for key, nbytes in self._sizes.items() if nbytes))
        all_of_it = self.host_bytes // 4096 * 4096  # memory comes in pages
        assert neighbour.ask("obtain", "another's", all_of_it) == "fill"
        neighbour.ask("release")
        assert neighbour.ask("obtain", key, self._sizes[key]) == "fill"
        neighbour.ask("write", 7)
        neighbour.kill()


@pytest.mark.process
def test_whoever_is_killed_every_picture_is_right_and_the_memory_is_nobodys_at_the_end(
    folder_of: FolderOf,
) -> None:
    with ExitStack() as stack:
        history = SharedHistory(folder_of, random.Random(3), stack)
        for number in range(12):
            history.step()
            if number in {3, 8}:
                history.lose_neighbour()
            if number in {5, 9}:
                history.die()
        history.end()
        history.server.wait_used(0)
