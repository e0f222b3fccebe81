"""
Copies shared host memory to card 0 and exits 0 if all held; a process of its own, so that its CUDA context ends with it.

    python -m tests.gpu.memory_child
"""

from __future__ import annotations

import torch

from falctl.host.cache.device import CudaDevice
from falctl.host.cache.pinning import card_pinning, registration
from falctl.host.cache.shared_memory import SharedBlock, SharedMemory
from tests.supervisor.memory_server import MemoryServer

NBYTES = 64 << 20


def block_of(memory: SharedMemory) -> SharedBlock:
    block = memory.obtain("unet", NBYTES)
    assert isinstance(block, SharedBlock)
    return block


def main() -> None:
    device = CudaDevice()
    print(f"worth pinning: {card_pinning() is not None}")
    with MemoryServer(NBYTES, registers=True) as server:
        runners = [SharedMemory(server.connect(number)[1], pinning=registration()) for number in range(2)]
        first = block_of(runners[0])
        first.flat.copy_(torch.arange(NBYTES // 8, dtype=torch.int64).view(torch.uint8))
        first.seal()
        second = block_of(runners[1])
        assert second.filled
        for block in (first, second):
            assert block.flat.is_pinned(), "registered while it was writable"
        for block in (first, second):
            flat = device.allocate(NBYTES)
            device.copy_in(flat, block.flat)
            assert torch.equal(flat.cpu(), first.flat)
            del flat
        for block in (first, second):
            block.release()
        server.wait_used(0)
        torch.zeros(1, device="cuda").add_(1).cpu()  # no error of a registration is left


if __name__ == "__main__":
    main()
