"""Pipelines whose components come and go: the same picture in the room of the largest of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from falctl.host.cache.arena import Arena
from falctl.host.cache.device import CpuDevice
from falctl.host.cache.staging import StagedPart, Staging, moved
from tests.host.cache.pipes import components, loaded, picture
from tests.host.cache.tiny_pipelines import ARCHITECTURES

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"  # diffusers' schedulers
)
FolderOf = Callable[[str], Path]


def parts_of(pipe: Any, peaks: dict[str, int] | None = None) -> dict[str, StagedPart]:
    return {
        name: StagedPart(name, module, Arena(module), 0, partial(int, (peaks or {}).get(name, 0)))
        for name, module in components(pipe).items()
    }


def on_device(parts: dict[str, StagedPart]) -> set[str]:
    return {name for name, part in parts.items() if part.weights.tier == "device"}


def assert_no_hooks(pipe: Any) -> None:
    for module in components(pipe).values():
        assert not {"forward", "encode", "decode", "to", "_hf_hook"} & set(module.__dict__)
        assert not any(part._forward_pre_hooks for part in module.modules())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_pipeline_in_the_room_of_its_largest_component_draws_the_same(
    folder_of: FolderOf, name: str
) -> None:
    pipe = loaded(folder_of(name))
    first = picture(pipe)
    parts = parts_of(pipe)
    device = CpuDevice(max(part.weights.nbytes for part in parts.values()))
    staging = Staging(device)
    for _draw in range(2):
        with staging.staged(parts.values()):
            assert picture(pipe) == first
    assert device.peak_bytes == device.budget_bytes, "the largest was there"
    assert_no_hooks(pipe)
    assert picture(pipe) == first, "where its components are left, they work"


def test_what_fits_beside_the_others_stays_for_the_next_drawing(folder_of: FolderOf) -> None:
    pipe = loaded(folder_of("sd3"))
    parts = parts_of(pipe)
    total = sum(part.weights.nbytes for part in parts.values())
    staging = Staging(CpuDevice(total))
    with staging.staged(parts.values()):
        picture(pipe)
    assert on_device(parts) == set(parts)
    # With one byte less the component that ran before the last leaves: its next turn is the furthest away.
    parts["vae"].weights.evict()
    for part in parts.values():
        part.weights.evict()
    with Staging(CpuDevice(total - 1)).staged(parts.values()):
        picture(pipe)
    assert on_device(parts) == set(parts) - {"transformer"}


def test_what_a_component_takes_while_it_runs_is_kept_free_for_it(folder_of: FolderOf) -> None:
    pipe = loaded(folder_of("sd15"))
    parts = parts_of(pipe)
    total = sum(part.weights.nbytes for part in parts.values())
    parts["vae"] = StagedPart("vae", pipe.vae, parts["vae"].weights, peak_bytes=lambda: total)
    device = CpuDevice(total + parts["vae"].weights.nbytes)
    free_at_decode: list[int] = []
    pipe.vae.decoder.register_forward_pre_hook(lambda *_: free_at_decode.append(device.free_bytes))
    with Staging(device).staged(parts.values()):
        picture(pipe)
        picture(pipe)
    assert min(free_at_decode) == total


def test_a_component_that_stayed_where_it_was_gets_its_room_too(folder_of: FolderOf) -> None:
    pipe = loaded(folder_of("sd15"))
    parts = parts_of(pipe, {"vae": 1})
    device = CpuDevice(sum(part.weights.nbytes for part in parts.values()))
    for part in parts.values():
        part.weights.to_device(device)
    with Staging(device).staged(parts.values()):
        pipe.vae.decode(torch.zeros(1, 4, 8, 8))
    assert on_device(parts) < set(parts)
    assert device.free_bytes >= 1


def test_too_little_room_is_out_of_memory_and_leaves_no_hook(folder_of: FolderOf) -> None:
    pipe = loaded(folder_of("sd3"))
    first = picture(pipe)
    parts = parts_of(pipe)
    device = CpuDevice(max(part.weights.nbytes for part in parts.values()) - 1)
    with pytest.raises(torch.OutOfMemoryError, match="are free"), Staging(device).staged(parts.values()):
        picture(pipe)
    assert_no_hooks(pipe)
    for part in parts.values():
        part.weights.evict()
    assert device.used_bytes == 0
    assert picture(pipe) == first


class Stopped(BaseException):
    """As a cancel may be."""


@pytest.mark.parametrize("kind", [RuntimeError, Stopped])
def test_a_drawing_that_breaks_off_leaves_everything_usable(
    folder_of: FolderOf, kind: type[BaseException]
) -> None:
    pipe = loaded(folder_of("flux"))
    first = picture(pipe)
    parts = parts_of(pipe)
    device = CpuDevice(max(part.weights.nbytes for part in parts.values()))
    staging = Staging(device)

    def stop(*_args: Any) -> None:
        raise kind("no more")

    handle = pipe.transformer.proj_out.register_forward_hook(stop)
    with staging.staged(parts.values()):
        with pytest.raises(kind):
            picture(pipe)
        handle.remove()
        assert picture(pipe) == first, "nothing counts as running for ever"
    assert_no_hooks(pipe)


@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")  # diffusers calls it itself
def test_a_cast_while_a_component_is_away_brings_it_first(folder_of: FolderOf) -> None:
    """SDXL casts a float16 VAE up before it decodes, and back."""
    pipe = loaded(folder_of("sdxl"), dtype=torch.float16)
    assert pipe.vae.config.force_upcast
    first = picture(pipe)
    parts = parts_of(pipe)
    device = CpuDevice(max(part.weights.nbytes for part in parts.values()))
    with Staging(device).staged(parts.values()):
        assert picture(pipe) == first
        assert picture(pipe) == first
    assert pipe.vae.dtype == torch.float16


def test_a_call_of_a_part_of_a_component_brings_it(folder_of: FolderOf) -> None:
    pipe = loaded(folder_of("sd3"))
    parts = parts_of(pipe)
    with Staging(CpuDevice(1 << 30)).staged(parts.values()):
        pipe.text_encoder_3.shared(torch.tensor([[1]]))
    assert on_device(parts) == {"text_encoder_3"}


def test_two_pipelines_share_a_component_and_the_hooks_stay_until_both_are_done(folder_of: FolderOf) -> None:
    one = loaded(folder_of("sd15"))
    other = type(one)(**one.components)
    parts = parts_of(one)
    staging = Staging(CpuDevice(max(part.weights.nbytes for part in parts.values())))
    first = picture(one)
    with staging.staged(parts.values()):
        with staging.staged(parts.values()):
            assert picture(other) == first
        assert picture(one) == first
    assert_no_hooks(one)


def test_modules_with_the_same_weights_never_send_each_other_away() -> None:
    module, other = nn.Linear(16, 16), nn.Linear(16, 16)
    clone = copy.deepcopy(module, {id(p): p for p in module.parameters()})
    weights, others = Arena(module), Arena(other)
    parts = (
        StagedPart("base", module, weights, same=1),
        StagedPart("clone", clone, weights, same=1, peak_bytes=lambda: weights.nbytes),
        StagedPart("other", other, others),
    )
    device = CpuDevice(weights.nbytes + others.nbytes)
    with Staging(device).staged(parts):
        module(torch.ones(16))
        other(torch.ones(16))
        clone(torch.ones(16))
        assert (weights.tier, others.tier) == ("device", "host")
        module(torch.ones(16))
        other(torch.ones(16))
        assert (weights.tier, others.tier) == ("device", "device")


def test_a_component_never_leaves_while_it_runs() -> None:
    """A component that calls another finds its own weights where they were."""

    class Outer(nn.Module):  # type: ignore[misc] # torch is not read for types
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(512))
            self.call = [inner]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.call[0](x)
            assert outer.tier == "device"
            return y + self.weight.sum()

    inner_module = nn.Linear(16, 16)
    module = Outer(inner_module)
    outer, inner = Arena(module), Arena(inner_module)
    parts = (StagedPart("outer", module, outer), StagedPart("inner", inner_module, inner))
    with Staging(CpuDevice(outer.nbytes + inner.nbytes)).staged(parts):
        module(torch.ones(16))
    for arena in (outer, inner):
        arena.evict()
    with (
        pytest.raises(torch.OutOfMemoryError),
        Staging(CpuDevice(outer.nbytes + inner.nbytes - 1)).staged(parts),
    ):
        module(torch.ones(16))


def test_pipelines_create_their_inputs_on_the_device_wherever_their_weights_are(folder_of: FolderOf) -> None:
    pipe = loaded(folder_of("flux"))
    where = torch.device("meta")  # stands for a card: nothing runs here

    class Elsewhere(CpuDevice):
        @property
        def torch_device(self) -> torch.device:
            return where

    with Staging(Elsewhere(1 << 30)).staged(parts_of(pipe).values()):
        assert pipe._execution_device == where
    assert pipe._execution_device == torch.device("cpu")


def test_inputs_follow_their_component() -> None:
    there = torch.device("meta")
    tensor = torch.ones(2)
    assert moved(tensor, torch.device("cpu")) is tensor
    args, kwargs = moved(([tensor, 3], (tensor,)), there), moved({"a": {"b": tensor}, "c": None}, there)
    assert [args[0][0].device, args[1][0].device, kwargs["a"]["b"].device] == [there] * 3
    assert (args[0][1], kwargs["c"]) == (3, None)
