"""
Swaps one component on card 0 and exits 0 if all held; a process of its own, so that its CUDA context ends with it.

    python -m tests.gpu.arena_child
"""

from __future__ import annotations

from typing import Any

import torch

from falctl.host.cache.arena import Arena
from falctl.host.cache.device import CudaDevice, Device

MiB = 1 << 20
SWAPS = 20


def check(device: Device, *, out_of_memory_bytes: int) -> None:
    """Swap a tied, mixed, channels_last component; *out_of_memory_bytes* is more than *device* has."""
    torch.manual_seed(0)
    module: Any = torch.nn.Module()
    module.wide = torch.nn.Linear(1024, 4096)  # 16 MiB
    module.tied = torch.nn.Linear(1024, 4096, bias=False)
    module.tied.weight = module.wide.weight
    module.half = torch.nn.Linear(64, 64).to(torch.float16)
    module.conv = torch.nn.Conv2d(8, 16, 3).to(memory_format=torch.channels_last)
    module.register_buffer("kept", torch.arange(7), persistent=False)
    before = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    arena = Arena(module)

    used_bytes, free_bytes = device.used_bytes, device.free_bytes
    for _swap in range(SWAPS):
        arena.to_device(device)
        assert device.used_bytes >= used_bytes + arena.nbytes
        assert device.peak_bytes >= device.used_bytes
        for name, tensor in module.state_dict().items():
            assert tensor.device == device.torch_device, name
            assert torch.equal(tensor.cpu(), before[name]), name
        assert module.tied.weight.data_ptr() == module.wide.weight.data_ptr()
        assert module.conv.weight.is_contiguous(memory_format=torch.channels_last)
        del tensor  # or it would hold the buffer that the next line drops
        arena.evict()
        assert device.used_bytes == used_bytes
    assert device.free_bytes >= free_bytes - 64 * MiB, "the card has it back"

    pointers = [parameter.data_ptr() for parameter in module.parameters()]
    try:
        device.allocate(out_of_memory_bytes)
    except torch.OutOfMemoryError:
        pass
    else:
        raise AssertionError("the device gave more than it has")
    assert [parameter.data_ptr() for parameter in module.parameters()] == pointers
    device.reset_peak()
    assert device.peak_bytes == device.used_bytes


if __name__ == "__main__":
    card = CudaDevice()
    assert card.name
    check(card, out_of_memory_bytes=torch.cuda.get_device_properties(0).total_memory + MiB)
