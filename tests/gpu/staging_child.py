"""
Draws on card 0 with pipelines that do not fit, and exits 0 if they drew as ever; a process of its own.

    python -m tests.gpu.staging_child
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from falctl.host.cache.admission import Admission
from falctl.host.cache.device import CudaDevice, Device
from falctl.host.cache.opening import import_libraries
from falctl.host.cache.pipeline_store import PipelineStore
from falctl.host.cache.private_memory import PrivateMemory
from falctl.toolkit import ModelCache
from falctl.toolkit.cache_hooks import CachePolicy
from tests.host.cache import tiny_pipelines
from tests.host.cache.pipes import picture
from tests.host.cache.stores import Folder

ARCHITECTURES = ("sd15", "sdxl", "sd3-deep", "flux-deep", "pixart", "ddpm")
SLACK_BYTES = 1 << 20
"""What pipelines keep on the device from one component to the next: embeddings, latents."""


class Narrow(CudaDevice):
    """A card of *budget_bytes* beside what this process had there before."""

    def __init__(self, budget_bytes: int) -> None:
        super().__init__()
        torch.zeros(1, device=self.torch_device)  # the context is there, and counts nothing
        self._limit_bytes = self.used_bytes + budget_bytes

    @property
    def used_bytes(self) -> int:
        """What was asked for: the allocator may give up to a megabyte more, of which a tiny pipeline knows nothing."""
        return int(torch.cuda.memory_stats(self.torch_device)["requested_bytes.all.current"])

    @property
    def free_bytes(self) -> int:
        return max(0, self._limit_bytes - self.used_bytes)

    def allocate(self, nbytes: int) -> torch.Tensor:
        if nbytes > self.free_bytes:
            msg = f"CUDA out of memory. Tried to allocate {nbytes} bytes"
            raise torch.OutOfMemoryError(msg)
        return super().allocate(nbytes)


def check(folder: Path, name: str, device_of: Callable[[int], Device], *, slack_bytes: int) -> None:
    """Draw with *name* whole, then in the room of its largest component, then in half of that."""

    def cache_on(device: Device) -> tuple[PipelineStore, ModelCache[object]]:
        store = PipelineStore(
            lambda _name: Folder(str(folder)), device=device, memory=PrivateMemory(), dtype="float32"
        )
        admission = Admission(store, counts_drawings=False)
        return store, ModelCache(store, policy=admission.policy(CachePolicy()))

    def draw(pipe: object) -> bytes:
        assert pipe._execution_device.type == device.torch_device.type  # type: ignore[attr-defined]
        return picture(pipe)

    device = device_of(1 << 30)
    store, cache = cache_on(device)
    sizes = store.sizes(name)
    first = cache.run(name, draw)
    assert cache.evict(name, "disk")
    largest = max(sizes, key=lambda part: part.nbytes)
    rooms = [largest.nbytes]
    if largest.nbytes > 4 * max(largest.blocks, default=largest.nbytes):
        rooms.append(max([largest.nbytes // 2, *(part.nbytes for part in sizes if part is not largest)]))
    for room in rooms:
        device = device_of(room + slack_bytes)
        used_bytes = device.used_bytes
        _store, cache = cache_on(device)
        for _draw in range(2):
            assert cache.run(name, draw) == first, (name, room)
        assert cache.evict(name, "disk")
        assert device.used_bytes == used_bytes, (name, room)


if __name__ == "__main__":
    import_libraries()
    with tempfile.TemporaryDirectory() as root:
        for architecture in ARCHITECTURES:
            written = tiny_pipelines.write(Path(root), architecture)
            check(written, architecture, Narrow, slack_bytes=SLACK_BYTES)
