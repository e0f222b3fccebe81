"""Tensors of every form in an arena: packed, moved, dropped, bound again, and refused where that would lose something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from falctl.host.cache.arena import Arena, bind
from falctl.host.cache.buffers import host_buffer
from falctl.host.cache.device import CpuDevice
from falctl.host.cache.layout import ALIGN_BYTES, NotPackableError, survey
from tests.host.cache.pipes import to_skeleton


def zoo() -> Any:
    """A module with every form that we pack."""
    torch.manual_seed(1)
    module = nn.Module()
    module.conv = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
    module.embed = nn.Embedding(7, 4)
    module.head = nn.Linear(4, 7, bias=False)
    module.head.weight = module.embed.weight  # one Parameter, two names
    module.scale = nn.Parameter(torch.randn(3, dtype=torch.float16), requires_grad=False)
    module.norm = nn.BatchNorm1d(3)  # num_batches_tracked has no dimensions
    module.register_buffer("empty", torch.empty(0, 4))
    module.register_buffer("flags", torch.tensor([True, False, True]))
    module.register_buffer("kept", torch.arange(5), persistent=False)
    module.register_buffer("twin", module.kept.view(5), persistent=False)  # two objects, one memory
    module.register_buffer("empty_kept", torch.empty(0), persistent=False)
    module.register_buffer("gaps", torch.randn(4, 6)[:, ::2])
    module.register_buffer("spread", torch.randn(4, 1).expand(4, 3))
    return module.eval()


def values(module: Any) -> dict[str, torch.Tensor]:
    return {name: t.detach().clone() for name, t in named(module).items()}


def named(module: Any) -> dict[str, torch.Tensor]:
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def assert_same(module: Any, before: dict[str, torch.Tensor]) -> None:
    now = named(module)
    assert now.keys() == before.keys()
    for name, tensor in now.items():
        assert tensor.dtype == before[name].dtype, name
        assert torch.equal(tensor, before[name]), name


def test_every_tier_shows_the_same_values_in_the_same_forms() -> None:
    module = zoo()
    before, objects, strides = values(module), named(module), module.conv.weight.stride()
    arena, device = Arena(module), CpuDevice(1 << 20)
    assert_same(module, before)
    arena.to_device(device)
    assert (arena.tier, device.used_bytes) == ("device", arena.nbytes)
    assert_same(module, before)
    arena.evict()
    assert (arena.tier, device.used_bytes) == ("host", 0)
    assert_same(module, before)
    assert module.conv.weight.stride() == strides == (27, 1, 9, 3), "channels_last"
    now = named(module)
    assert all(now[name] is objects[name] for name in now), (
        "the objects are those that a LoRA or a hook knows"
    )
    assert module.scale.requires_grad is False


def test_slots_are_aligned_apart_and_inside_and_tied_weights_have_one() -> None:
    layout, tensors = survey(zoo())
    places = {(s.offset, s.nbytes) for s in layout.slots if s.nbytes}
    end = 0
    for offset, nbytes in sorted(places):
        assert offset % ALIGN_BYTES == 0
        assert offset >= end
        end = offset + nbytes
    assert end <= layout.nbytes < end + ALIGN_BYTES
    by_name = {name: slot for slot in layout.slots for name in slot.names}
    assert by_name["embed.weight"] is by_name["head.weight"]
    assert by_name["kept"].offset == by_name["twin"].offset
    assert len(tensors) == len(layout.slots)


def test_what_no_file_has_comes_last_and_survives_the_skeleton() -> None:
    module = zoo()
    before, arena = values(module), Arena(module)
    for slot in arena.layout.slots:
        assert slot.in_file == (not {"kept", "twin", "empty_kept"} & set(slot.names))
        assert (slot.offset < arena.layout.file_nbytes) == slot.in_file or slot.nbytes == 0
    assert arena.host is not None
    files = arena.host[: arena.layout.file_nbytes].clone()
    to_skeleton(arena)
    assert (arena.tier, arena.host) == ("skeleton", None)
    assert not any(t.numel() for t in named(module).values())
    assert module.scale.dtype == torch.float16, "a pipeline asks its modules for their dtype"
    again = host_buffer(arena.nbytes)
    again[: len(files)] = files
    again[arena.layout.file_nbytes :] = arena.kept()
    arena.attach(again)
    assert (arena.tier, arena.host is again) == ("host", True)
    assert_same(module, before)


def test_a_skeleton_holds_no_host_bytes_and_leaves_its_device() -> None:
    arena, device = Arena(zoo()), CpuDevice(1 << 20)
    arena.to_device(device)
    to_skeleton(arena)
    assert (arena.tier, device.used_bytes) == ("skeleton", 0)
    to_skeleton(arena)
    arena.evict()
    assert arena.tier == "skeleton"


def test_a_tied_weight_stays_tied_in_every_tier() -> None:
    module = zoo()
    arena, device = Arena(module), CpuDevice(1 << 20)
    moves: list[Callable[[], object]] = [lambda: None, lambda: arena.to_device(device), arena.evict]
    for move in moves:
        move()
        assert module.head.weight.data_ptr() == module.embed.weight.data_ptr()
        assert module.twin.data_ptr() == module.kept.data_ptr()


@pytest.mark.parametrize("view", [lambda t: t.view(2, 4), lambda t: t.unsqueeze(0), lambda t: t[2:6]])
def test_what_a_buffer_was_a_view_of_is_let_go(view: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """SD3's table of positions is one: its file stayed mapped, or all of the table in memory, for ever."""
    gone: list[bool] = []
    module: Any = nn.Module()
    module.register_buffer("table", view(host_buffer(8, released=lambda: gone.append(True))))
    table, before = module.table, module.table.clone()
    arena = Arena(module)
    assert gone == [True]
    assert module.table is table
    assert torch.equal(table, before)
    arena.to_device(device := CpuDevice(1 << 20))
    assert torch.equal(table, before)
    arena.evict()
    assert device.used_bytes == 0


def test_a_buffer_may_be_a_part_of_a_larger_one() -> None:
    module = zoo()
    before, arena = values(module), Arena(module)
    larger = host_buffer(arena.nbytes + 2 * ALIGN_BYTES)
    part = larger[ALIGN_BYTES:-ALIGN_BYTES]
    assert arena.host is not None
    part.copy_(arena.host)
    to_skeleton(arena)
    arena.attach(part)
    assert_same(module, before)


def test_what_is_written_on_the_device_is_forgotten_by_an_evict() -> None:
    module = zoo()
    before, arena, device = values(module), Arena(module), CpuDevice(1 << 20)
    arena.to_device(device)
    with torch.no_grad():
        module.embed.weight.fill_(9.0)
    arena.evict()
    assert_same(module, before)


def test_weights_move_under_inference_mode() -> None:
    module = zoo()
    before = values(module)
    with torch.inference_mode():
        arena, device = Arena(module), CpuDevice(1 << 20)
        arena.to_device(device)
        arena.evict()
    arena.to_device(device)
    assert_same(module, before)


def test_a_module_without_a_byte_has_every_tier_too() -> None:
    arena, device = Arena(nn.Module()), CpuDevice(0)
    arena.to_device(device)
    assert (arena.tier, arena.nbytes, device.used_bytes) == ("device", 0, 0)
    to_skeleton(arena)
    arena.attach(host_buffer(0))
    assert arena.tier == "host"


def test_a_buffer_of_the_wrong_size_or_type_is_refused_and_nothing_bound() -> None:
    module = zoo()
    arena = Arena(module)
    layout, tensors = survey(module)
    for wrong in (host_buffer(arena.nbytes - 1), torch.empty(arena.nbytes, dtype=torch.int8)):
        with pytest.raises(ValueError, match="flat bytes are needed"):
            bind(tensors, layout.slots, wrong)
    to_skeleton(arena)
    for nbytes in (arena.nbytes - ALIGN_BYTES, arena.nbytes + ALIGN_BYTES):
        with pytest.raises(ValueError, match="a buffer of"):
            arena.attach(host_buffer(nbytes))
    assert arena.tier == "skeleton"


class Quantised(nn.Parameter):  # type: ignore[misc] # torch is not read for types
    """As bitsandbytes' Params4bit: its `.data` is a plain tensor, what makes sense of it lies beside it."""


class Wrapped(torch.Tensor):  # type: ignore[misc] # torch is not read for types
    """As torchao's."""


def with_weight(weight: Any) -> Any:
    module = nn.Module()
    module.ok = nn.Parameter(torch.ones(3))
    module.register_buffer("odd", weight) if not isinstance(
        weight, nn.Parameter
    ) else module.register_parameter("odd", weight)
    return module


def overlapping() -> Any:
    module, memory = nn.Module(), torch.zeros(10)
    module.register_buffer("all", memory)
    module.register_buffer("odd", memory[2:5])
    return module


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: with_weight(Quantised(torch.ones(2))), "Quantised"),
        (lambda: with_weight(torch.ones(2).as_subclass(Wrapped)), "Wrapped"),
        (lambda: with_weight(nn.Parameter(torch.ones(2, device="meta"))), "is on meta"),
        (lambda: with_weight(torch.eye(2).to_sparse()), "sparse"),
        (lambda: with_weight(torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)), "qint8"),
        (lambda: with_weight(torch.ones(2, dtype=torch.complex64).conj()), "conjugated"),
        (lambda: with_weight(nn.UninitializedParameter()), "UninitializedParameter"),
        (overlapping, "shares some of the memory of all"),
    ],
)
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")  # deprecated, and in old models
def test_what_would_lose_something_is_refused_by_name_and_left_as_it_was(
    make: Callable[[], Any], reason: str
) -> None:
    module = make()
    addresses = [t.data_ptr() for name, t in named(module).items() if name != "odd"]
    with pytest.raises(NotPackableError, match=f"^odd .*{reason}"):
        Arena(module)
    assert [t.data_ptr() for name, t in named(module).items() if name != "odd"] == addresses


@given(
    sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=5),
    budget=st.integers(0, 12_000),
    moves=st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["load", "evict", "skeleton"])), max_size=30),
)
def test_no_history_exceeds_the_budget_or_changes_a_weight(
    sizes: list[int], budget: int, moves: list[tuple[int, str]]
) -> None:
    modules = [with_weight(nn.Parameter(torch.randn(size))) for size in sizes]
    before = [values(module) for module in modules]
    arenas, device = [Arena(module) for module in modules], CpuDevice(budget)
    for at, move in moves:
        arena, module, was = arenas[at % len(sizes)], modules[at % len(sizes)], before[at % len(sizes)]
        held = arena.host
        if move == "load":
            fits = arena.tier == "device" or arena.nbytes <= device.free_bytes
            try:
                arena.to_device(device)
            except torch.OutOfMemoryError:
                assert not fits
            else:
                assert fits
        elif move == "evict":
            arena.evict()
        else:
            to_skeleton(arena)
            assert held is not None
            arena.attach(held)
        assert_same(module, was)
        assert device.used_bytes == sum(a.nbytes for a in arenas if a.tier == "device")
        assert device.peak_bytes <= budget
