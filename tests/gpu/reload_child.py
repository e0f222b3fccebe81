"""
Draws on card 0 with every architecture after swaps and reloads, and exits 0 if all drew as at first.

A process of its own, so that its CUDA context ends with it. Host memory is what runners have: shared, and registered.

    python -m tests.gpu.reload_child
"""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path

import torch

from falctl.core.residency import Tier
from falctl.host.cache.device import CudaDevice, Device
from falctl.host.cache.host_memory import HostMemory
from falctl.host.cache.opening import import_libraries
from falctl.host.cache.pinning import registration
from falctl.host.cache.pipeline_store import PipelineStore
from falctl.host.cache.shared_memory import SharedMemory
from falctl.toolkit import ModelCache
from tests.host.cache import tiny_pipelines
from tests.host.cache.pipes import picture
from tests.host.cache.stores import Folder, bring, leave, tiers
from tests.supervisor.memory_server import MemoryServer

BUDGET_BYTES = 256 << 20
SWAPS = 5


def check(folder: Path, name: str, device: Device, memories: tuple[HostMemory, HostMemory]) -> None:
    """Draw with *name* from every tier, then in another runner that finds its bytes filled."""
    first = draws_as_ever(folder, name, device, memories[0])
    store = store_of(folder, device, memories[1])
    assert picture(bring(store, name)) == first, "what another runner has filled"
    store.forget(name)


def draws_as_ever(folder: Path, name: str, device: Device, memory: HostMemory) -> bytes:
    store = store_of(folder, device, memory)
    first = picture(bring(store, name))
    leave(store, name)
    used_bytes = used_after_all(device)
    for _swap in range(SWAPS):
        assert tiers(store, name) == {"ram"}
        assert picture(bring(store, name)) == first, (name, "from host memory")
        leave(store, name)
        assert used_after_all(device) == used_bytes, (name, "what swaps leave behind")
    leave(store, name, drop=True)
    assert tiers(store, name) == {"disk"}
    assert picture(bring(store, name)) == first, (name, "from its files")
    for filling in (True, False):
        leave(store, name, drop=True)
        assert picture(store.place(name, filling=filling)) == first, (name, "copied as it was read", filling)
    store.forget(name)
    cache = ModelCache(store)
    assert cache.run(name, picture) == first, (name, "constructed anew")
    left: tuple[Tier, ...] = ("vram", "ram")
    for tier in left:
        assert cache.evict(name, tier)
        assert cache.run(name, picture) == first, (name, tier)
    return first


def used_after_all(device: Device) -> int:
    gc.collect()
    return device.used_bytes


def store_of(folder: Path, device: Device, memory: HostMemory) -> PipelineStore:
    return PipelineStore(lambda _name: Folder(str(folder)), device=device, memory=memory, dtype="float32")


def main() -> None:
    import_libraries()
    device = CudaDevice()
    with tempfile.TemporaryDirectory() as root, MemoryServer(BUDGET_BYTES, registers=True) as server:
        memories = [SharedMemory(server.connect(i)[1], pinning=registration()) for i in range(2)]
        for number, memory in enumerate(memories):
            block = memory.obtain("probe", 1 << 20)
            if not block.filled:
                block.seal()
            assert block.flat.is_pinned(), f"runner {number} copies from pageable memory"
        for name in tiny_pipelines.ARCHITECTURES:
            check(tiny_pipelines.write(Path(root), name), name, device, (memories[0], memories[1]))
            print(f"{name} draws as ever")
        torch.zeros(1, device="cuda").add_(1).cpu()  # no error of a registration is left


if __name__ == "__main__":
    main()
