"""Components of which only some blocks are on the device at a time: the same picture, in less room than their weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from falctl.core.fit import DrawingPeaks, PartSize, Plan, fit, role_of
from falctl.host.cache import streams
from falctl.host.cache.arena import Arena
from falctl.host.cache.device import CpuDevice
from falctl.host.cache.offload import Offloaded, blocks_in, offloaded
from falctl.host.cache.staging import StagedPart, Staging
from falctl.host.cache.streams import Copies
from tests.host.cache.pipes import components, loaded, picture
from tests.host.cache.tiny_pipelines import ARCHITECTURES

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"  # diffusers' schedulers
)
FolderOf = Callable[[str], Path]


def arenas(pipe: Any) -> dict[str, Arena]:
    return {name: Arena(module) for name, module in components(pipe).items()}


def total(packed: dict[str, Arena]) -> int:
    return sum(arena.nbytes for arena in packed.values())


@pytest.mark.parametrize("name", ["sd3-deep", "flux-deep"])
def test_a_pipeline_of_one_and_a_half_devices_draws_the_same(folder_of: FolderOf, name: str) -> None:
    pipe = loaded(folder_of(name))
    first = picture(pipe)
    packed = arenas(pipe)
    device = CpuDevice(total(packed) * 2 // 3)
    sizes = [
        PartSize(part, arena.nbytes, role_of(part), tuple(b.nbytes for b in blocks_in(arena.layout)))
        for part, arena in packed.items()
    ]
    plan = fit(sizes, DrawingPeaks(), available_bytes=device.budget_bytes)
    assert isinstance(plan, Plan)
    assert plan.how == "offloaded"
    (blocks,) = plan.offloaded
    assert blocks.name == "transformer"
    module = pipe.transformer
    moving = offloaded([module], packed["transformer"], blocks)
    assert (moving.nbytes, moving.moved_bytes) == (blocks.nbytes, blocks.moved_bytes), "as planned"
    parts = [
        StagedPart(part, getattr(pipe, part), moving if part == "transformer" else arena)
        for part, arena in packed.items()
    ]
    with Staging(device).staged(parts):
        assert [picture(pipe), picture(pipe)] == [first] * 2
    assert device.peak_bytes <= plan.nbytes
    for part in parts:
        part.weights.evict()
    assert device.used_bytes == 0
    assert picture(pipe) == first
    assert not any(m._forward_pre_hooks for m in module.modules())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_component_with_blocks_can_go_through_in_turn(folder_of: FolderOf, name: str) -> None:
    pipe = loaded(folder_of(name))
    first = picture(pipe)
    packed = arenas(pipe)
    for resident, slots in ((0, 1), (0, 2), (1, 2)):
        moving = [
            Offloaded([getattr(pipe, part)], arena, resident=resident, slots=slots)
            for part, arena in packed.items()
            if blocks_in(arena.layout)
        ]
        assert moving
        device = CpuDevice(sum(one.nbytes for one in moving))
        for one in moving:
            one.to_device(device)
        assert picture(pipe) == first
        assert device.used_bytes == device.peak_bytes == device.budget_bytes
        for one in moving:
            one.evict()
        assert device.used_bytes == 0
    assert picture(pipe) == first


def chain(blocks: int, *, width: int = 16) -> Any:
    torch.manual_seed(5)
    module: Any = nn.Module()
    module.head = nn.Linear(width, width)
    module.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
    return module


def run(module: Any, order: Sequence[int]) -> torch.Tensor:
    x = torch.ones(16)
    with torch.no_grad():
        for i in order:
            x = module.blocks[i](x).tanh()
    return x


def on_device(module: Any, device: CpuDevice, host: torch.Tensor) -> list[int]:
    """Which blocks' weights do not view the host's bytes."""
    del device
    start, end = host.data_ptr(), host.data_ptr() + host.numel()
    return [i for i, b in enumerate(module.blocks) if not start <= b.weight.data_ptr() < end]


def test_no_more_blocks_are_on_the_device_than_there_are_places_for() -> None:
    module = chain(6)
    arena = Arena(module)
    host, device = arena.host, CpuDevice(1 << 20)
    assert host is not None
    moving = Offloaded([module], arena, resident=2, slots=2)
    seen: list[list[int]] = []
    moving.to_device(device)
    for block in module.blocks:
        block.register_forward_hook(lambda *_: seen.append(on_device(module, device, host)))
    run(module, range(6))
    assert seen == [[0, 1], [0, 1], [0, 1, 2, 3], [0, 1, 3, 4], [0, 1, 4, 5], [0, 1, 2, 5]]
    assert moving.nbytes < arena.nbytes


def test_the_order_is_learnt_so_that_the_block_that_is_next_arrives_early() -> None:
    module = chain(5)
    expected = run(module, [0, 3, 1, 4])
    arena = Arena(module)
    host, device = arena.host, CpuDevice(1 << 20)
    assert host is not None
    Offloaded([module], arena, resident=0, slots=2).to_device(device)
    for _pass in range(2):
        assert torch.equal(run(module, [0, 3, 1, 4]), expected)
    seen: list[list[int]] = []
    for block in module.blocks:
        block.register_forward_hook(lambda *_: seen.append(on_device(module, device, host)))
    run(module, [0, 3, 1, 4])
    assert seen == [[0, 3], [1, 3], [1, 4], [0, 4]]


def test_a_block_that_is_away_shows_the_hosts_bytes_and_never_another_blocks() -> None:
    module = chain(4)
    weights = [block.weight.detach().clone() for block in module.blocks]
    arena = Arena(module)
    Offloaded([module], arena, resident=0, slots=2).to_device(CpuDevice(1 << 20))
    for i in (0, 1, 2, 3, 1, 0, 0, 2):
        run(module, [i])
        assert all(torch.equal(b.weight, w) for b, w in zip(module.blocks, weights, strict=True))


def test_out_of_memory_for_the_slots_changes_nothing() -> None:
    module = chain(4)
    arena = Arena(module)
    moving = Offloaded([module], arena, resident=0, slots=2)
    pointers = [p.data_ptr() for p in module.parameters()]
    for budget in range(0, moving.nbytes, 512):
        device = CpuDevice(budget)
        with pytest.raises(torch.OutOfMemoryError):
            moving.to_device(device)
        assert device.used_bytes == 0
        assert (moving.tier, [p.data_ptr() for p in module.parameters()]) == ("host", pointers)
    moving.to_device(CpuDevice(moving.nbytes))
    moving.to_device(CpuDevice(0))  # it is there
    assert moving.tier == "device"


class Torn:
    """A way to copy of which the *at*-th copy fails."""

    def __init__(self, inner: Copies, at: int) -> None:
        self.inner, self.left = inner, at

    def mark(self, flat: torch.Tensor) -> None:
        self.inner.mark(flat)

    def take_over(self) -> None:
        self.inner.take_over()

    def begin(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> object:
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("the copy failed")
        return self.inner.begin(pairs)

    def wait(self, copy: object) -> None:
        self.inner.wait(copy)


@pytest.mark.parametrize("at", range(1, 7))
def test_a_copy_that_fails_is_an_error_and_the_next_run_is_right(
    monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    module = chain(4)
    expected = run(module, range(4))
    copies_for = streams.copies_for
    monkeypatch.setattr("falctl.host.cache.offload.copies_for", lambda device: Torn(copies_for(device), at))
    moving = Offloaded([module], Arena(module), resident=0, slots=2)
    moving.to_device(CpuDevice(1 << 20))
    with pytest.raises(RuntimeError, match="the copy failed"):
        run(module, [*range(4)] * 2)
    assert torch.equal(run(module, range(4)), expected)
    assert torch.equal(run(module, [3, 1, 2, 0]), run(module, [3, 1, 2, 0]))
    moving.evict()
    assert torch.equal(run(module, range(4)), expected)


def test_tied_weights_and_buffers_of_blocks_go_with_them_or_stay() -> None:
    module: Any = nn.Module()
    module.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
    module.blocks[2].weight = module.blocks[1].weight
    module.blocks[0].register_buffer("scale", torch.ones(7))
    module.blocks[0].register_buffer("table", torch.arange(5), persistent=False)  # the layout's far end
    module.blocks[0].register_buffer("empty", torch.empty(0))
    arena = Arena(module)
    by_path = {
        block.path: {n for i in block.members for n in arena.layout.slots[i].names}
        for block in blocks_in(arena.layout)
    }
    assert {"blocks.0.weight", "blocks.0.scale", "blocks.0.table", "blocks.0.empty"} < by_path["blocks.0"]
    assert by_path["blocks.1"] == {"blocks.1.bias"}
    before = {name: t.clone() for name, t in module.state_dict().items()}
    moving = Offloaded([module], arena, resident=0, slots=1)
    moving.to_device(CpuDevice(moving.nbytes))
    for block in module.blocks:
        block(torch.ones(16))
        assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())
        assert torch.equal(module.blocks[0].table, torch.arange(5))
    assert module.blocks[2].weight.data_ptr() == module.blocks[1].weight.data_ptr()


def test_a_clone_with_the_same_weights_finds_its_blocks_too() -> None:
    """As a pipeline with LoRAs has: the modules are its own, the Parameters are the base's."""
    module = chain(5)
    clone, late = (copy.deepcopy(module, {id(p): p for p in module.parameters()}) for _clone in range(2))
    expected = run(module, range(5))
    arena = Arena(module)
    host, device = arena.host, CpuDevice(1 << 20)
    assert host is not None
    moving = Offloaded([module, clone], arena, resident=0, slots=1)
    moving.to_device(device)
    moving.also(late)
    for one in (module, clone, late):
        seen: list[list[int]] = []
        for block in one.blocks:
            block.register_forward_hook(lambda *_, one=one: seen.append(on_device(one, device, host)))  # noqa: B023
        assert torch.equal(run(one, range(5)), expected)
        assert seen == [[i] for i in range(5)]
    moving.evict()
    assert torch.equal(run(late, range(5)), expected)
    assert not any(part._forward_pre_hooks for one in (module, clone, late) for part in one.modules())


def test_a_module_is_cloned_without_the_bytes_that_its_hooks_hold() -> None:
    module = chain(5)
    moving, device = Offloaded([module], Arena(module), resident=0, slots=2), CpuDevice(1 << 20)
    moving.to_device(device)
    weights = {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]}
    seen: list[torch.Tensor] = []
    with copies_of_tensors(seen):
        copy.deepcopy(module, weights)
    assert not seen


@contextmanager
def copies_of_tensors(seen: list[torch.Tensor]) -> Iterator[None]:
    inner = torch.Tensor.__deepcopy__

    def noted(self: torch.Tensor, memo: dict[int, object]) -> torch.Tensor:
        if id(self) not in memo:
            seen.append(self)
        return inner(self, memo)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "__deepcopy__", noted)
        yield
