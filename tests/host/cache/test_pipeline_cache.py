"""A `ModelCache` over pipelines: what the handle decides, done to real weights."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from falctl.core.activations import Drawing
from falctl.errors import ModelTooLargeError
from falctl.host.cache.device import CpuDevice
from falctl.host.cache.private_memory import PrivateMemory
from falctl.toolkit import ModelCache
from falctl.toolkit.cache_hooks import CachePolicy
from tests.host.cache.pipes import SIDE, loaded, picture
from tests.host.cache.stores import FolderOf, store_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"  # diffusers' schedulers
)

SMALL = Drawing(SIDE, SIDE)


def sizes(folder_of: Callable[[str], Path], *names: str) -> list[int]:
    """Return what each of *names* takes with its drawing."""
    store = store_of(folder_of)
    for name in names:
        store.construct(name)
    return [sum(p.nbytes for p in store.needs(name)) + store.peak_bytes(name, SMALL) for name in names]


def test_pipelines_take_turns_on_a_device_that_holds_one_and_draw_the_same(folder_of: FolderOf) -> None:
    names = ("sd15", "sdxl")
    expected = {name: picture(loaded(folder_of(name))) for name in names}
    device, memory = CpuDevice(max(sizes(folder_of, *names))), PrivateMemory()
    store = store_of(folder_of, device=device, memory=memory)
    cache = ModelCache(store)
    for _round in range(3):
        for name in names:
            assert cache.run(name, picture, SMALL) == expected[name]
            assert cache.resident == (name,)
            there = [part.nbytes for part in store.parts().values() if part.tier == "vram"]
            assert device.used_bytes == sum(there)
    assert {resident.name: resident.tier for resident in cache.residents()} == {"sd15": "ram", "sdxl": "vram"}


def test_a_model_that_is_too_large_is_refused_before_it_is_loaded(folder_of: FolderOf) -> None:
    device, memory = CpuDevice(sizes(folder_of, "sdxl")[0] - 1), PrivateMemory()
    cache = ModelCache(store_of(folder_of, device=device, memory=memory))
    with pytest.raises(ModelTooLargeError, match=r"^Model 'sdxl' has no room: it needs"):
        cache.run("sdxl", picture, Drawing(1024, 1024))
    assert memory.used_bytes == device.peak_bytes == 0


@pytest.mark.parametrize("room", [0, 1 << 21])
def test_with_less_host_memory_than_device_memory_every_model_runs(folder_of: FolderOf, room: int) -> None:
    names = ("sd15", "sdxl", "sd15")
    expected = {name: picture(loaded(folder_of(name))) for name in names}
    memory, device = PrivateMemory(room), CpuDevice(max(sizes(folder_of, *names)))
    cache = ModelCache(store_of(folder_of, device=device, memory=memory))
    for name in names:
        assert cache.run(name, picture, SMALL) == expected[name]
        assert memory.used_bytes <= room
    with pytest.raises(
        ModelTooLargeError, match=r"has no room in host memory: .* bytes of host memory are needed"
    ):
        cache.load("sdxl", "ram")


def test_a_full_host_memory_lets_idle_models_go_to_the_disk(folder_of: FolderOf) -> None:
    names = ("sd15", "sdxl")
    expected = {name: picture(loaded(folder_of(name))) for name in names}
    needs = {name: sum(part.nbytes for part in store_of(folder_of).needs(name)) for name in names}
    memory = PrivateMemory(int(needs["sdxl"] * 1.1))
    cache = ModelCache(store_of(folder_of, memory=memory))
    for name in (*names, *names):
        cache.run(name, picture, SMALL)
        cache.evict(name)
    assert memory.used_bytes <= int(needs["sdxl"] * 1.1)
    assert {name: cache.run(name, picture, SMALL) for name in names} == expected


def test_a_pipeline_that_runs_out_of_memory_is_run_again_and_stays_usable(folder_of: FolderOf) -> None:
    cache = ModelCache(store_of(folder_of))
    first = cache.run("sd15", picture, SMALL)
    failing = iter([True, False])

    def draw(pipe: object) -> bytes:
        if next(failing):
            raise torch.OutOfMemoryError
        return picture(pipe)

    assert cache.run("sd15", draw, SMALL) == first


def test_a_replaced_model_runs_where_there_is_room_for_one_and_leaves_none_of_its_bytes(
    folder_of: FolderOf, tmp_path: Path
) -> None:
    shutil.copytree(folder_of("sd15"), tmp_path / "mine")
    device, memory = CpuDevice(max(sizes(folder_of, "sd15", "sd15-other-unet"))), PrivateMemory()
    cache = ModelCache(store_of({"mine": tmp_path / "mine"}, device=device, memory=memory))
    expected = [picture(loaded(folder_of(name))) for name in ("sd15", "sd15-other-unet")]
    gc.disable()
    try:
        assert cache.run("mine", picture, SMALL) == expected[0]
        unet = Path("unet") / "diffusion_pytorch_model.safetensors"
        shutil.copy(folder_of("sd15-other-unet") / unet, tmp_path / "new")
        (tmp_path / "new").rename(tmp_path / "mine" / unet)
        assert cache.run("mine", picture, SMALL) == expected[1]
        assert device.used_bytes == memory.used_bytes == cache.residents()[0].device_bytes
    finally:
        gc.enable()


def test_a_pipeline_without_bytes_that_is_one_too_many_is_forgotten_with_all_that_it_held(
    folder_of: FolderOf,
) -> None:
    device, memory = CpuDevice(1 << 30), PrivateMemory()
    store = store_of(folder_of, device=device, memory=memory)
    cache = ModelCache(store, policy=CachePolicy(skeletons_max=1))
    seen: list[weakref.ref[object]] = []
    for name in ("ddpm", "sd15", "sd15-other-unet"):
        with cache.lease(name) as pipeline:
            seen.append(weakref.ref(pipeline.unet))
            assert store.module_bytes(name) > 50_000
        del pipeline
        cache.evict(name, "ram")
    gc.collect()
    assert [resident.name for resident in cache.residents()] == ["sd15-other-unet"]
    assert [one() is None for one in seen] == [True, True, False]
    assert (device.used_bytes, memory.used_bytes, len(store.parts())) == (0, 0, 3)
    assert store.module_bytes("sd15") == 0
