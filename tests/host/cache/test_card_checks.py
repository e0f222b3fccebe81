"""The checks that tests/gpu makes on a card hold on the CPU device, too, so that they are right when there is a card."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from falctl.host.cache.device import CpuDevice
from falctl.host.cache.shared_memory import SharedMemory
from tests.gpu import arena_child, out_of_memory_child, reload_child, staging_child
from tests.host.cache.stores import PLENTY
from tests.supervisor.memory_server import MemoryServer

MiB = 1 << 20

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"  # diffusers' schedulers
)


def test_the_check_of_arenas() -> None:
    arena_child.check(CpuDevice(64 * MiB), out_of_memory_bytes=65 * MiB)


@pytest.mark.parametrize("name", ["flux-deep", "ddpm"])
def test_the_check_of_staging(folder_of: Callable[[str], Path], name: str) -> None:
    staging_child.check(folder_of(name), name, CpuDevice, slack_bytes=0)


@pytest.mark.parametrize("name", ["sd15", "pixart"])
def test_the_check_of_reloads(folder_of: Callable[[str], Path], name: str) -> None:
    with MemoryServer(64 * MiB) as server:
        first, second = (SharedMemory(server.connect(number)[1]) for number in range(2))
        reload_child.check(folder_of(name), name, CpuDevice(PLENTY), (first, second))
        first.close()
        second.close()


def test_the_check_of_what_runs_out_of_memory(folder_of: Callable[[str], Path]) -> None:
    out_of_memory_child.check(folder_of("sd15"), CpuDevice(PLENTY), limited, side=512, counts_drawings=False)


@contextmanager
def limited(nbytes: int) -> Iterator[None]:
    """Refuse a tensor of more than half of *nbytes*, for the CPU's allocator has no limit: most need two at a time."""
    with _Refuses(nbytes // 2):
        yield


class _Refuses(TorchDispatchMode):  # type: ignore[misc]  # torch is not read for types
    def __init__(self, most_bytes: int) -> None:
        super().__init__()
        self._most_bytes = most_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and found.numel() * found.element_size() > self._most_bytes:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate too much")
        return found
