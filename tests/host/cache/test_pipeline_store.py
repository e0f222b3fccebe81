"""Pipelines through a store: what they draw, what they share, and what every step leaves behind."""

from __future__ import annotations

import gc
import json
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from falctl.errors import ModelFilesError, NotFoundError
from falctl.host.cache import loading
from falctl.host.cache.device import CpuDevice
from falctl.host.cache.estimate import Wanted
from falctl.host.cache.host_memory import HostMemoryFullError
from falctl.host.cache.private_memory import PrivateMemory
from falctl.host.cache.stopping import LoadCancelledError
from tests.host.cache.pipes import components, loaded, picture
from tests.host.cache.stores import FolderOf, bring, keys_of, leave, store_of, tiers
from tests.host.cache.test_arena_pipelines import resident_bytes
from tests.host.cache.tiny_pipelines import ARCHITECTURES

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"  # diffusers' schedulers
)

SWAPS = 20


def nbytes(store: Any, name: str) -> int:
    return sum(part.nbytes for part in store.needs(name))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_pipeline_draws_the_same_bit_for_bit_after_many_swaps_and_from_a_skeleton(
    folder_of: FolderOf, name: str
) -> None:
    first = picture(loaded(folder_of(name)))
    device, memory = CpuDevice(1 << 30), PrivateMemory()
    store = store_of(folder_of, device=device, memory=memory)
    pipe = bring(store, name)
    assert picture(pipe) == first
    for _swap in range(SWAPS):
        leave(store, name)
        assert (device.used_bytes, tiers(store, name)) == (0, {"ram"})
        assert store.place(name) is pipe
        assert (device.used_bytes, tiers(store, name)) == (nbytes(store, name), {"vram"})
    assert picture(pipe) == first
    leave(store, name, drop=True)
    assert (device.used_bytes, memory.used_bytes, tiers(store, name)) == (0, 0, {"disk"})
    assert store.is_constructed(name)
    assert bring(store, name) is pipe
    assert memory.used_bytes == nbytes(store, name)
    assert picture(pipe) == first


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_skeleton_of_another_dtype_than_its_files_draws_the_same(folder_of: FolderOf, dtype: Any) -> None:
    store = store_of(folder_of, dtype=dtype)
    pipe = bring(store, "sd3")  # its T5 keeps a part in float32
    assert {p.dtype for p in pipe.transformer.parameters()} == {getattr(torch, dtype)}
    first = picture(pipe)
    leave(store, "sd3", drop=True)
    assert tiers(store, "sd3") == {"disk"}
    assert picture(bring(store, "sd3")) == first


def test_what_is_needed_is_known_before_anything_is_constructed(folder_of: FolderOf) -> None:
    store = store_of(folder_of)
    before = store.needs("sd15")
    assert {(part.tier, part.host) for part in before} == {("disk", False)}
    assert not store.is_constructed("sd15")
    assert store.parts() == {}
    store.construct("sd15")
    after = store.needs("sd15")
    assert [part.key for part in after] == [part.key for part in before]
    assert {(part.tier, part.host) for part in after} == {("ram", True)}
    for estimated, real in zip(before, after, strict=True):
        assert estimated.nbytes == pytest.approx(real.nbytes, rel=0.2)  # of tiny tensors, alignment is a lot
    store.forget("sd15")
    assert [part.nbytes for part in store.needs("sd15")] == [part.nbytes for part in after]


def test_equal_components_are_there_once_and_each_pipeline_has_its_own_scheduler(folder_of: FolderOf) -> None:
    device, memory = CpuDevice(1 << 30), PrivateMemory()
    store = store_of(folder_of, device=device, memory=memory)
    expected = {name: picture(loaded(folder_of(name))) for name in ("sd15", "sd15-other-unet")}
    one = bring(store, "sd15")
    alone_bytes = device.used_bytes
    other = bring(store, "sd15-other-unet")
    assert one.text_encoder is other.text_encoder
    assert one.vae is other.vae
    assert one.unet is not other.unet
    assert one.scheduler is not other.scheduler
    assert one.tokenizer is not other.tokenizer
    assert len(store.parts()) == 4
    extra = next(part for part in store.needs("sd15-other-unet") if part.key not in keys_of(store, "sd15"))
    assert device.used_bytes == memory.used_bytes == alone_bytes + extra.nbytes
    assert {"sd15": picture(one), "sd15-other-unet": picture(other)} == expected
    store.forget("sd15")
    assert sorted(store.parts()) == sorted(keys_of(store, "sd15-other-unet"))
    assert device.used_bytes == memory.used_bytes == nbytes(store, "sd15-other-unet")
    assert picture(other) == expected["sd15-other-unet"]


def test_a_shared_component_is_handed_in_from_every_tier(folder_of: FolderOf) -> None:
    expected = picture(loaded(folder_of("sd15-other-unet")))
    for drop in (False, True):
        store = store_of(folder_of)
        bring(store, "sd15")
        leave(store, "sd15", drop=drop)
        assert picture(bring(store, "sd15-other-unet")) == expected


def test_two_equal_components_of_one_pipeline_are_one(folder_of: FolderOf, tmp_path: Path) -> None:
    twins = tmp_path / "twins"
    shutil.copytree(folder_of("sdxl"), twins)
    index = json.loads((twins / "model_index.json").read_text())
    index["text_encoder"] = index["text_encoder_2"]
    (twins / "model_index.json").write_text(json.dumps(index))
    shutil.rmtree(twins / "text_encoder")
    shutil.copytree(twins / "text_encoder_2", twins / "text_encoder")
    store = store_of({"twins": twins})
    pipe = bring(store, "twins")
    assert pipe.text_encoder is pipe.text_encoder_2
    assert len(store.needs("twins")) == 3


def test_a_forgotten_pipeline_leaves_no_bytes_even_while_somebody_holds_it(folder_of: FolderOf) -> None:
    device, memory = CpuDevice(1 << 30), PrivateMemory()
    store = store_of(folder_of, device=device, memory=memory)
    pipe = bring(store, "sd15")
    store.forget("sd15")
    assert (device.used_bytes, memory.used_bytes, dict(store.parts())) == (0, 0, {})
    assert not any(p.numel() for part in components(pipe).values() for p in part.parameters())
    assert not store.is_constructed("sd15")
    store.forget("sd15")


def test_nothing_maps_the_weight_files_once_they_are_loaded(folder_of: FolderOf) -> None:
    store = store_of(folder_of)
    bring(store, "sdxl")
    assert str(folder_of("sdxl")) not in Path("/proc/self/maps").read_text()


class Refusing(CpuDevice):
    """Refuses one allocation, the *nth* from 0."""

    def __init__(self, nth: int) -> None:
        super().__init__(1 << 30)
        self.left = nth

    def allocate(self, nbytes: int) -> torch.Tensor:
        self.left -= 1
        if self.left == -1:
            msg = "injected"
            raise torch.OutOfMemoryError(msg)
        return super().allocate(nbytes)


def test_out_of_memory_at_any_allocation_leaves_the_store_consistent(folder_of: FolderOf) -> None:
    first = picture(loaded(folder_of("sdxl")))
    count = len(store_of(folder_of).needs("sdxl"))
    for nth in range(count):
        device = Refusing(nth)
        store = store_of(folder_of, device=device)
        store.construct("sdxl")
        with pytest.raises(torch.OutOfMemoryError, match="injected"):
            store.place("sdxl")
        there = [part for part in store.parts().values() if part.tier == "vram"]
        assert len(there) == nth
        assert device.used_bytes == sum(part.nbytes for part in there)
        assert store.total_bytes == 1 << 30
        assert picture(store.place("sdxl")) == first


def test_a_thousand_swaps_leave_no_byte_behind(folder_of: FolderOf) -> None:
    store = store_of(folder_of)
    bring(store, "ddpm")
    keys = keys_of(store, "ddpm")
    total_bytes = nbytes(store, "ddpm")

    def swap(times: int) -> int:
        for number in range(times):
            for key in keys:
                store.evict(key)
                if number % 10 == 0:
                    store.drop(key)
            assert store.device.used_bytes == 0
            if number % 10 == 0:
                store.fill("ddpm", threading.Event())
            store.place("ddpm")
            assert store.device.used_bytes == total_bytes
        return resident_bytes()

    began_bytes = swap(50)
    assert swap(950) - began_bytes < 16 * total_bytes, "a leak of every swap would be 950 times as much"


def test_constructing_and_forgetting_again_and_again_leaves_no_byte_behind(folder_of: FolderOf) -> None:
    store = store_of(folder_of)

    def again(times: int) -> int:
        for _time in range(times):
            bring(store, "sd15")
            total = nbytes(store, "sd15")
            store.forget("sd15")
            assert store.device.used_bytes == 0
        return resident_bytes() // total

    gc.collect()
    gc.freeze()  # what the libraries imported is looked at by each forget else
    try:
        began = again(4)
        assert again(20) - began < 10, "each would be one more"
    finally:
        gc.unfreeze()


def test_without_room_in_host_memory_weights_go_straight_to_the_device(folder_of: FolderOf) -> None:
    first = picture(loaded(folder_of("sd15")))
    memory = PrivateMemory(0)
    store = store_of(folder_of, memory=memory)
    store.construct("sd15")
    assert tiers(store, "sd15") == {"disk"}
    with pytest.raises(HostMemoryFullError):
        store.fill("sd15", threading.Event())
    pipe = store.place("sd15")
    assert {(part.tier, part.host) for part in store.needs("sd15")} == {("vram", False)}
    assert picture(pipe) == first
    leave(store, "sd15")
    assert (tiers(store, "sd15"), store.device.used_bytes, memory.used_bytes) == ({"disk"}, 0, 0)
    assert picture(store.place("sd15")) == first


def test_host_bytes_may_leave_while_the_device_has_them(folder_of: FolderOf) -> None:
    memory = PrivateMemory()
    store = store_of(folder_of, memory=memory)
    pipe = bring(store, "pixart")  # has bytes that no file has
    first = picture(pipe)
    for key in keys_of(store, "pixart"):
        store.drop(key)
    assert memory.used_bytes == 0
    assert {(part.tier, part.host) for part in store.needs("pixart")} == {("vram", False)}
    assert picture(pipe) == first
    leave(store, "pixart")
    assert tiers(store, "pixart") == {"disk"}
    assert picture(bring(store, "pixart")) == first


def test_two_stores_over_one_memory_have_one_copy_of_the_bytes(folder_of: FolderOf) -> None:
    memory = PrivateMemory()
    one, other = (store_of(folder_of, memory=memory) for _store in range(2))
    first = picture(bring(one, "sd3"))
    alone_bytes = memory.used_bytes
    pipe = bring(other, "sd3")
    assert memory.used_bytes == alone_bytes
    leave(other, "sd3")
    leave(one, "sd3")
    held = {p.data_ptr() for part in components(one.place("sd3")).values() for p in part.parameters()}
    assert not held & {p.data_ptr() for part in components(pipe).values() for p in part.parameters()}
    leave(one, "sd3")
    held = {
        p.data_ptr() for part in components(one._models["sd3"].pipeline).values() for p in part.parameters()
    }
    assert held == {p.data_ptr() for part in components(pipe).values() for p in part.parameters()}
    leave(one, "sd3", drop=True)
    assert memory.used_bytes == alone_bytes, "the other has them still"
    bring(one, "sd3")
    assert memory.used_bytes == alone_bytes
    assert picture(bring(other, "sd3")) == first
    one.forget("sd3")
    other.forget("sd3")
    assert memory.used_bytes == 0


def test_a_cancelled_fill_leaves_a_skeleton_and_no_bytes(folder_of: FolderOf) -> None:
    memory = PrivateMemory()
    store = store_of(folder_of, memory=memory)
    bring(store, "sd15")
    leave(store, "sd15", drop=True)
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(LoadCancelledError):
        store.fill("sd15", cancelled)
    assert (memory.used_bytes, tiers(store, "sd15")) == (0, {"disk"})
    bring(store, "sd15")


def test_a_pipeline_without_an_optional_component_loads(folder_of: FolderOf, tmp_path: Path) -> None:
    pipe = loaded(folder_of("sd3"))
    pipe.register_modules(text_encoder_3=None, tokenizer_3=None)
    pipe.save_pretrained(tmp_path / "no-t5")
    first = picture(pipe)
    store = store_of({"no-t5": tmp_path / "no-t5"})
    assert picture(bring(store, "no-t5")) == first


@pytest.fixture
def folder(folder_of: FolderOf, tmp_path: Path) -> Path:
    """Return a folder of one's own: a copy of sd15."""
    shutil.copytree(folder_of("sd15"), tmp_path / "mine")
    return tmp_path / "mine"


UNET = Path("unet") / "diffusion_pytorch_model.safetensors"


def swap_unet(folder: Path, folder_of: FolderOf) -> None:
    """Put the other UNet in the place of the folder's, as a download does: by a rename."""
    shutil.copy(folder_of("sd15-other-unet") / UNET, folder / "new")
    (folder / "new").rename(folder / UNET)


def test_a_replaced_folder_is_another_model_under_the_same_name(folder: Path, folder_of: FolderOf) -> None:
    memory = PrivateMemory()
    store = store_of({"mine": folder}, memory=memory)
    old = bring(store, "mine")
    before = keys_of(store, "mine")
    first = picture(old)
    swap_unet(folder, folder_of)
    assert not store.is_constructed("mine")
    changed = set(keys_of(store, "mine")) ^ set(before)
    assert len(changed) == 2, "the UNet's, old and new"
    new = bring(store, "mine")
    assert picture(new) == picture(loaded(folder_of("sd15-other-unet")))
    assert new.vae is old.vae
    assert picture(old) == first, "who draws with the old one meanwhile may end"
    assert memory.used_bytes > nbytes(store, "mine")
    assert sorted(store.parts()) == sorted(keys_of(store, "mine"))
    del old
    gc.collect()
    assert memory.used_bytes == store.device.used_bytes == nbytes(store, "mine")
    store.forget("mine")
    assert (store.device.used_bytes, memory.used_bytes) == (0, 0)


def test_files_that_change_while_they_are_loaded_make_no_model(
    folder: Path, folder_of: FolderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = loading.load_pipeline

    def meanwhile(recipe: Any, held: Any) -> Any:
        swap_unet(folder, folder_of)
        return really(recipe, held)

    monkeypatch.setattr("falctl.host.cache.pipeline_store.load_pipeline", meanwhile)
    memory = PrivateMemory()
    store = store_of({"mine": folder}, memory=memory)
    with pytest.raises(ModelFilesError, match=rf"^Model 'mine' cannot be loaded: .*{UNET} was .*replaced"):
        store.construct("mine")
    assert (dict(store.parts()), memory.used_bytes, store.is_constructed("mine")) == ({}, 0, False)


def test_another_file_beside_the_weights_makes_no_other_model(folder: Path) -> None:
    store = store_of({"mine": folder})
    bring(store, "mine")
    (folder / "unet" / "notes.txt").write_text("mine")
    assert store.is_constructed("mine")
    (folder / "scheduler" / "scheduler_config.json").touch()
    assert not store.is_constructed("mine")


def test_a_skeleton_whose_file_was_replaced_is_not_refilled_from_the_new_one(
    folder: Path, folder_of: FolderOf
) -> None:
    store = store_of({"mine": folder})
    bring(store, "mine")
    leave(store, "mine", drop=True)
    swap_unet(folder, folder_of)
    with pytest.raises(ModelFilesError, match=rf"Model 'mine' cannot be loaded: .*{UNET} was .*replaced"):
        store.fill("mine", threading.Event())
    assert picture(bring(store, "mine")) == picture(loaded(folder_of("sd15-other-unet")))


def test_what_two_folders_have_is_read_from_the_other_once_one_is_gone(
    folder: Path, folder_of: FolderOf
) -> None:
    store = store_of({"mine": folder, "other": folder_of("sd15-other-unet")})
    bring(store, "mine")
    bring(store, "other")
    for name in ("mine", "other"):
        leave(store, name, drop=True)
    store.forget("mine")
    shutil.rmtree(folder)
    assert picture(bring(store, "other")) == picture(loaded(folder_of("sd15-other-unet")))


@pytest.mark.parametrize("spoil", ["cut", "missing", "index"])
def test_a_half_written_folder_names_the_file_and_is_whole_once_it_is(folder: Path, spoil: str) -> None:
    path = folder / ("model_index.json" if spoil == "index" else UNET)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2]) if spoil != "missing" else path.unlink()
    store = store_of({"mine": folder})
    named = re.escape(str(folder / "unet" if spoil == "missing" else path))
    for ask in (store.check, store.needs, store.construct):
        with pytest.raises(ModelFilesError, match=f"^Model 'mine' cannot be loaded: {named}") as caught:
            ask("mine")
        assert caught.value.__cause__ is None, "a line of the log, not two tracebacks"
    assert (dict(store.parts()), store.device.used_bytes) == ({}, 0)
    path.write_bytes(whole)
    picture(bring(store, "mine"))


def test_what_the_library_cannot_load_is_an_error_of_the_folder_and_leaves_nothing(folder: Path) -> None:
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "block_out_channels": [32, 128]}))
    memory = PrivateMemory()
    store = store_of({"mine": folder}, memory=memory)
    with pytest.raises(ModelFilesError, match=r"^Model 'mine' cannot be loaded: \w+: "):
        store.construct("mine")
    assert (dict(store.parts()), memory.used_bytes) == ({}, 0)


def test_a_name_that_there_is_not_is_whatever_find_says(folder: Path) -> None:
    store = store_of({"mine": folder})
    for ask in (store.check, store.needs, store.construct):
        with pytest.raises(NotFoundError):
            ask("yours")


def test_the_variant_in_the_wanted_dtype_is_taken_then_the_plain_files_then_any(
    folder_of: FolderOf, tmp_path: Path
) -> None:
    both, only = tmp_path / "both", tmp_path / "only"
    pipe = loaded(folder_of("ddpm"), dtype=torch.float16)
    pipe.save_pretrained(only, variant="fp16")
    shutil.copytree(folder_of("ddpm"), both)
    shutil.copy(only / "unet" / "diffusion_pytorch_model.fp16.safetensors", both / "unet")
    folders = {"both": both, "only": only}
    choices: tuple[tuple[Wanted, str | None], ...] = (
        ("float16", "fp16"),
        ("bfloat16", None),
        ("float32", None),
    )
    for dtype, chosen in choices:
        store = store_of(folders, dtype=dtype)
        assert store._recipes.of(both).variant == chosen
        assert {p.dtype for p in bring(store, "both").unet.parameters()} == {getattr(torch, dtype)}
        assert store._recipes.of(only).variant == "fp16"
        assert {p.dtype for p in bring(store, "only").unet.parameters()} == {getattr(torch, dtype)}


def test_memory_that_ran_out_is_no_fault_of_the_folders_whatever_the_library_calls_it(folder: Path) -> None:
    class Full(CpuDevice):
        def allocate(self, nbytes: int) -> torch.Tensor:
            raise RuntimeError("CUDA error: out of memory")

    store = store_of({"mine": folder}, device=Full(1 << 30))
    store.construct("mine")
    with pytest.raises(RuntimeError, match=r"^CUDA error: out of memory$"):
        store.place("mine")
