"""A cache of real pipelines, and what is done to it by chance; after each deed its figures are checked."""

from __future__ import annotations

import gc
import random
import threading
from contextlib import suppress

import torch

from falctl.core.activations import Drawing
from falctl.errors import ModelTooLargeError
from falctl.host.cache.device import CpuDevice
from falctl.host.cache.host_memory import HostMemory
from falctl.host.cache.pipeline_store import PipelineStore
from falctl.host.cache.private_memory import PrivateMemory
from falctl.toolkit import ModelCache, RequestCancelled
from falctl.toolkit.cache_hooks import CacheHooks, CachePolicy
from tests.host.cache.pipes import SIDE, loaded, picture
from tests.host.cache.stores import FolderOf, store_of

NAMES = ("sd15", "sd15-other-unet", "sdxl")
"""The first two have their text encoder and VAE in common."""
SMALL = Drawing(SIDE, SIDE)
DEEDS = ("draw", "draw", "draw", "load", "evict", "pin", "tend", "fail", "cancel")


class FailingDevice(CpuDevice):
    """Fails the allocation that is to fail, whatever room there is."""

    fails_in = 0

    def allocate(self, nbytes: int) -> torch.Tensor:
        self.fails_in -= 1
        if self.fails_in == 0:
            raise torch.OutOfMemoryError
        return super().allocate(nbytes)


class History:
    """One cache, and what is done to it."""

    def __init__(self, folder_of: FolderOf, dice: random.Random) -> None:
        self.folder_of = folder_of
        self.expected = {name: picture(loaded(folder_of(name))) for name in NAMES}
        probe = store_of(folder_of)
        needs = {name: sum(p.nbytes for p in probe.needs(name)) for name in NAMES}
        peaks = {name: probe.peak_bytes(name, SMALL) for name in NAMES}
        self.dice = dice
        self.device_bytes = int(1.1 * max(needs[name] + peaks[name] for name in NAMES))
        self.host_bytes = int(1.2 * max(needs.values()))
        self.cancelled = threading.Event()
        self.begin()

    def begin(self) -> None:
        """Start with nothing, as a new process does."""
        self.device = FailingDevice(self.device_bytes)
        self.memory = self.new_memory()
        self.store: PipelineStore = store_of(self.folder_of, device=self.device, memory=self.memory)
        policy = CachePolicy(keep_alive_s=lambda _name: self.dice.choice((-1.0, -1.0, 0.0)))
        self.cache = ModelCache(self.store, policy=policy, hooks=CacheHooks(cancelled=lambda: self.cancelled))

    def new_memory(self) -> HostMemory:
        return PrivateMemory(self.host_bytes)

    def held_host_bytes(self) -> int:
        assert isinstance(self.memory, PrivateMemory)
        return self.memory.used_bytes

    def step(self) -> None:
        self.cancelled.clear()
        self.device.fails_in = 0
        name = self.dice.choice(NAMES)
        with suppress(ModelTooLargeError, RequestCancelled):
            getattr(self, self.dice.choice(DEEDS))(name)
        self.check()

    def check(self) -> None:
        there = {key: part for key, part in self.store.parts().items() if part.tier == "vram"}
        assert self.device.used_bytes == sum(part.nbytes for part in there.values())
        assert self.device.peak_bytes <= self.device.budget_bytes
        assert self.held_host_bytes() <= self.host_bytes
        for name in self.cache.resident:
            assert all(part.key in there for part in self.store.needs(name))

    def draw(self, name: str) -> None:
        assert self.cache.run(name, picture, SMALL) == self.expected[name]

    def load(self, name: str) -> None:
        self.cache.load(name, self.dice.choice(("vram", "ram")), evict=NAMES[:1])

    def evict(self, name: str) -> None:
        self.cache.evict(name, self.dice.choice(("vram", "ram", "disk")))

    def pin(self, name: str) -> None:
        if not self.cache.unpin(name) and not self.cache.pinned:
            self.cache.pin(name)

    def tend(self, _name: str) -> None:
        self.cache.tend()

    def fail(self, name: str) -> None:
        self.device.fails_in = self.dice.randint(1, 3)
        self.draw(name)

    def cancel(self, name: str) -> None:
        self.cancelled.set()
        self.draw(name)

    def end(self) -> None:
        """Draw all of it once more, let go of everything, and check that nothing is left on the device."""
        self.cancelled.clear()
        self.device.fails_in = 0
        for name in self.cache.pinned:
            self.cache.unpin(name)
        for name in NAMES:
            self.draw(name)
        assert all(resident.leases == 0 for resident in self.cache.residents())
        for name in NAMES:
            self.cache.evict(name, "disk")
        gc.collect()
        assert (self.cache.residents(), self.device.used_bytes) == ((), 0)
