"""
Takes memory of card 0 and gives it back, exits 0 if all held; a process of its own, so that its context ends with it.

    python -m tests.gpu.guest_child
"""

from __future__ import annotations

import torch

from falctl.core.guest import RECOVERED
from falctl.host.cache.device import CudaDevice
from falctl.host.device_use import reserved_bytes

NBYTES = 1 << 30


def main() -> None:
    assert reserved_bytes() == 0, "asking makes no context"
    assert not torch.cuda.is_initialized()
    device = CudaDevice()
    flat = device.allocate(NBYTES)
    assert reserved_bytes() >= NBYTES
    free_bytes = torch.cuda.mem_get_info(0)[0]
    del flat
    assert reserved_bytes() >= NBYTES, "the allocator keeps it until it is told"
    device.give_back()
    assert reserved_bytes() < NBYTES
    assert torch.cuda.mem_get_info(0)[0] - free_bytes >= RECOVERED * NBYTES, (
        "the card has it when the call returns"
    )


if __name__ == "__main__":
    main()
