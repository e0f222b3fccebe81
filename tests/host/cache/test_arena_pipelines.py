"""Whole pipelines in arenas: what they draw never changes, however often their weights move."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from falctl.host.cache.arena import Arena
from falctl.host.cache.buffers import host_buffer
from falctl.host.cache.device import CpuDevice
from tests.host.cache.pipes import components, loaded, picture, to_skeleton
from tests.host.cache.tiny_pipelines import ARCHITECTURES

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"  # diffusers' schedulers
)

SWAPS = 20
FolderOf = Callable[[str], Path]


def packed(pipe: Any) -> list[Arena]:
    return [Arena(part) for part in components(pipe).values()]


def total(arenas: list[Arena]) -> int:
    return sum(arena.nbytes for arena in arenas)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_image_is_the_same_bit_for_bit_after_many_swaps(folder_of: FolderOf, name: str) -> None:
    pipe = loaded(folder_of(name))
    first = picture(pipe)
    arenas = packed(pipe)
    device = CpuDevice(total(arenas))
    for _swap in range(SWAPS):
        for arena in arenas:
            arena.to_device(device)
        assert device.used_bytes == device.budget_bytes
        for arena in arenas:
            arena.evict()
        assert device.used_bytes == 0
    assert picture(pipe) == first, "from the host's bytes"
    for arena in arenas:
        arena.to_device(device)
    assert picture(pipe) == first, "from the device's bytes"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_skeleton_that_got_its_bytes_back_draws_the_same_image(folder_of: FolderOf, name: str) -> None:
    pipe = loaded(folder_of(name))
    first = picture(pipe)
    for arena in packed(pipe):
        assert arena.host is not None
        bytes_of_files = arena.host[: arena.layout.file_nbytes].clone()
        to_skeleton(arena)
        assert not any(tensor.numel() for tensor in arena._tensors)
        again = host_buffer(arena.nbytes)
        again[: arena.layout.file_nbytes] = bytes_of_files
        again[arena.layout.file_nbytes :] = arena.kept()
        arena.attach(again)
    assert picture(pipe) == first


def test_weights_of_two_dtypes_in_one_component_keep_them(folder_of: FolderOf) -> None:
    pipe = loaded(folder_of("sd3"), dtype=torch.float16)
    first = picture(pipe)
    dtypes = {n: t.dtype for n, t in pipe.text_encoder_3.named_parameters()}
    assert set(dtypes.values()) == {torch.float16, torch.float32}, "T5 in float16 keeps `wo` in float32"
    for arena in packed(pipe):
        arena.to_device(CpuDevice(arena.nbytes))
    assert picture(pipe) == first
    assert {n: t.dtype for n, t in pipe.text_encoder_3.named_parameters()} == dtypes


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_marked_as_in_a_file_is_in_one_under_one_of_its_names(folder_of: FolderOf, name: str) -> None:
    for part_name, part in components(loaded(folder_of(name))).items():
        arena = Arena(part)
        in_files = dict(file_tensors(folder_of(name) / part_name))
        # transformers 5 saves some encoders below a prefix that the module itself does not have.
        ends = {key.removeprefix("text_model.") for key in in_files}
        for slot in arena.layout.slots:
            known = any(n.removeprefix("text_model.") in ends for n in slot.names)
            assert known == slot.in_file, (part_name, slot.names)


def file_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - not a dict
                yield key, opened.get_tensor(key)


def test_equal_components_of_two_pipelines_are_equal_bytes_in_equal_places(folder_of: FolderOf) -> None:
    one, other = (components(loaded(folder_of(name))) for name in ("sd15", "sd15-other-unet"))
    for part in one:
        a, b = Arena(one[part]), Arena(other[part])
        assert a.host is not None
        assert b.host is not None
        assert a.layout == b.layout
        assert torch.equal(a.host, b.host) == (part != "unet")


def test_out_of_memory_at_any_component_leaves_the_pipeline_as_it_was(folder_of: FolderOf) -> None:
    pipe = loaded(folder_of("sdxl"))
    first = picture(pipe)
    arenas = packed(pipe)
    for fitting in range(len(arenas)):
        device = CpuDevice(total(arenas[: fitting + 1]) - 1)
        for arena in arenas[:fitting]:
            arena.to_device(device)
        before = addresses(pipe), device.used_bytes
        with pytest.raises(torch.OutOfMemoryError, match="are free"):
            arenas[fitting].to_device(device)
        assert (addresses(pipe), device.used_bytes) == before
        assert picture(pipe) == first
        for arena in arenas:
            arena.evict()


def addresses(pipe: Any) -> list[int]:
    return [t.data_ptr() for part in components(pipe).values() for t in [*part.parameters(), *part.buffers()]]


def test_hundreds_of_swaps_leave_no_byte_on_the_device_and_none_in_the_process(folder_of: FolderOf) -> None:
    arenas = packed(loaded(folder_of("sd15")))
    device = CpuDevice(total(arenas))

    def swap(times: int) -> int:
        for _swap in range(times):
            for arena in arenas:
                arena.to_device(device)
            assert device.used_bytes == device.budget_bytes
            for arena in arenas:
                arena.evict()
            assert device.used_bytes == 0
        return resident_bytes()

    began_bytes = swap(10)
    assert swap(250) - began_bytes < 8 * device.budget_bytes, (
        "a leak of every swap would be 250 times as much"
    )
    assert device.peak_bytes == device.budget_bytes


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
