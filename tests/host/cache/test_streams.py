"""When memory that a stream may still touch is let go of: the order of calls, as far as it can be seen without a card."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch
from torch import nn

from falctl.host.cache.arena import Arena
from falctl.host.cache.device import CpuDevice
from falctl.host.cache.loose_component import LooseComponent
from falctl.host.cache.offload import Offloaded
from falctl.host.cache.streams import InlineCopies, StreamCopies

WHERE = torch.device("cuda", 0)


class Settling(CpuDevice):
    """Notes what was in use whenever somebody waited for what is queued."""

    def __init__(self) -> None:
        super().__init__(1 << 20)
        self.in_use: list[int] = []

    def settle(self) -> None:
        self.in_use.append(self.used_bytes)


def chain() -> Any:
    module: Any = nn.Module()
    module.head = nn.Linear(16, 16)
    module.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
    return module


def whole(device: CpuDevice) -> Arena:
    arena = Arena(chain())
    arena.to_device(device)
    return arena


def by_blocks(device: CpuDevice) -> Offloaded:
    module = chain()
    moving = Offloaded([module], Arena(module), resident=1, slots=2)
    moving.to_device(device)
    for block in module.blocks:
        block(torch.ones(16))
    return moving


def loose(device: CpuDevice) -> LooseComponent:
    component = LooseComponent(chain(), key="k", once=False)
    component.to_device(device)
    return component


@pytest.mark.parametrize("made", [whole, by_blocks, loose])
def test_what_leaves_the_device_waits_for_what_is_queued_before_its_memory_can_be_anothers(made: Any) -> None:
    device = Settling()
    weights = made(device)
    there = device.used_bytes
    assert there > 0
    weights.evict()
    assert device.used_bytes == 0
    assert device.in_use == [there]
    weights.evict()
    assert device.in_use == [there], "it is not there"


class Stream:
    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: Stream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event: str) -> None:
        self.log.append(f"{self.name} waits for {event}")

    def record_event(self) -> str:
        return f"what {self.name} was given"


class Cuda:
    """What of `torch.cuda` tells streams apart."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.current: Any = Stream("main", self.log)

    def Stream(self, where: torch.device) -> Stream:  # noqa: N802 - torch's name
        assert where == WHERE
        return Stream("side", self.log)

    def current_stream(self, where: torch.device) -> object:
        assert where == WHERE
        return self.current

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        outer, self.current = self.current, stream
        yield
        self.current = outer


class Flat:
    """A tensor that notes what is done with it, and on which stream."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda

    def record_stream(self, stream: Stream) -> None:
        self.cuda.log.append(f"marked for {stream.name}")

    def copy_(self, host: object, *, non_blocking: bool) -> None:
        del host
        assert non_blocking
        self.cuda.log.append(f"copied on {self.cuda.current.name}")


def test_a_copy_comes_after_what_used_its_slot_and_before_what_uses_it_next() -> None:
    cuda = Cuda()
    copies, flat = StreamCopies(WHERE, cuda), cast("torch.Tensor", Flat(cuda))
    copies.mark(flat)
    copies.take_over()
    copies.wait(copies.begin([(flat, flat)]))
    assert cuda.log == [
        "marked for side",
        "side waits for main",
        "copied on side",
        "main waits for what side was given",
    ]


def test_a_thread_with_a_stream_of_its_own_waits_for_the_one_before_it() -> None:
    cuda = Cuda()
    copies = StreamCopies(WHERE, cuda)
    copies.take_over()
    copies.take_over()
    assert cuda.log == []
    cuda.current = Stream("other", cuda.log)
    copies.take_over()
    copies.take_over()
    assert cuda.log == ["other waits for main"]


class Noted(InlineCopies):
    """Notes what the ring says to whoever copies for it."""

    def __init__(self, device: CpuDevice) -> None:
        super().__init__(device)
        self.log: list[str] = []

    def mark(self, flat: torch.Tensor) -> None:
        self.log.append(f"mark {flat.numel()}")

    def take_over(self) -> None:
        self.log.append("take over")

    def begin(self, pairs: Any) -> object:
        self.log.append("begin")
        return super().begin(pairs)


def test_every_slot_is_marked_before_anything_is_copied_into_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a component that nobody evicts, because its files were replaced, can be dropped at any moment."""
    module, device = chain(), CpuDevice(1 << 20)
    moving, copies = Offloaded([module], Arena(module), resident=0, slots=2), Noted(device)
    monkeypatch.setattr("falctl.host.cache.offload.copies_for", lambda _device: copies)
    moving.to_device(device)
    assert [line.split()[0] for line in copies.log] == ["mark", "mark"]
    module.blocks[0](torch.ones(16))
    assert copies.log[2:] == ["take over", "begin", "begin"]
