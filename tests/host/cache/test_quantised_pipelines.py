"""Pipelines that fit only with their float8 weights, through a model cache: the same picture as those weights drawn whole."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from falctl.core.fit import DrawingPeaks, PartSize, Plan
from falctl.errors import ModelTooLargeError
from falctl.host.cache import content_key, loading
from falctl.host.cache.admission import Admission
from falctl.host.cache.arrangement import Arrangement
from falctl.host.cache.device import CpuDevice
from falctl.host.cache.estimate import Wanted
from falctl.host.cache.layout import survey
from falctl.host.cache.pipeline_store import PipelineStore
from falctl.host.cache.private_memory import PrivateMemory
from falctl.toolkit import ModelCache
from falctl.toolkit.cache_hooks import CachePolicy
from tests.host.cache.float8_files import add_float8, copy_of, drop_plain
from tests.host.cache.pipes import loaded, picture
from tests.host.cache.stores import PLENTY, Folder, FolderOf, bring, keys_of, leave, store_of, tiers

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"  # diffusers' schedulers
)
NAMES = ["sd3-deep", "flux-deep", "sdxl"]
"""Of the last the UNet, which is repeated in blocks, too."""


@pytest.fixture(scope="module")
def float8_of(folder_of: FolderOf, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a name to its folder with float8 variants in it; nobody may change it."""
    root = tmp_path_factory.mktemp("float8")
    done: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in done:
            done[name] = add_float8(copy_of(folder_of(name), root))
        return done[name]

    return folder


def cache_of(store: PipelineStore, **settings: Any) -> ModelCache[Any]:
    """Return a cache that admits by weights alone, unless *settings* say otherwise."""
    admission = Admission(store, **{"counts_drawings": False, **settings})
    return ModelCache(store, policy=admission.policy(CachePolicy()))


def whole(parts: Iterable[PartSize]) -> int:
    parts = tuple(parts)
    return sum(part.nbytes for part in parts) + max(part.beside for part in parts)


def held_sizes(folder: Path, weights: str, *, dtype: Wanted = "float32") -> tuple[PartSize, ...]:
    """Return the sizes of the quantised *weights* of *folder* once they are loaded: padded, with unsaved buffers."""
    store = store_of({"m": folder}, dtype=dtype)
    store.arrange("m", arranged(weights))
    store.construct("m")
    return store.quantised("m")[weights]


def arranged(weights: str) -> Arrangement:
    return Arrangement(Plan("whole", 0, weights=weights), DrawingPeaks())


def room_for_float8(folder: Path) -> int:
    """Return bytes in which the float8 weights fit whole and the plain ones not even staged."""
    room = whole(held_sizes(folder, "fp8"))
    assert room < max(part.nbytes for part in store_of({"m": folder}).sizes("m")), "else those fit staged"
    return room


@pytest.mark.parametrize("name", NAMES)
def test_what_fits_with_float8_weights_only_draws_what_they_draw_whole(
    float8_of: FolderOf, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = float8_of(name)
    drawn = picture(loaded(folder, variant="fp8"))
    device = CpuDevice(room_for_float8(folder))
    store = store_of({"m": folder}, device=device)
    cache = cache_of(store)
    assert cache.run("m", picture) == drawn
    assert "how=fp8 weights, whole" in caplog.text
    assert "because whole takes" in caplog.text
    assert device.used_bytes == sum(part.nbytes for part in store.needs("m"))
    for key, part in store.parts().items():
        layout, _tensors = survey(store._components[key].module)
        assert part.nbytes == layout.nbytes
    leave(store, "m")
    assert tiers(store, "m") == {"ram"}
    assert cache.run("m", picture) == drawn, "from host memory"
    cache.evict("m")
    leave(store, "m", drop=True)
    assert tiers(store, "m") == {"disk"}, "every byte of it is proved to be in the files"
    assert cache.run("m", picture) == drawn, "from the disk"
    assert cache.evict("m", "disk")
    assert device.used_bytes == 0
    assert cache.run("m", picture) == drawn, "made anew"
    assert caplog.text.count("model.arranged") == 1


def test_the_device_in_bfloat16_holds_what_the_headers_say(float8_of: FolderOf) -> None:
    folder = float8_of("flux-deep")
    device = CpuDevice(whole(held_sizes(folder, "fp8", dtype="bfloat16")))
    store = store_of({"m": folder}, device=device, dtype="bfloat16")
    cache = cache_of(store)
    said = {part.name: part.nbytes for part in store.quantised("m")["fp8"]}
    plain = {part.name: part.nbytes for part in store.sizes("m")}
    assert said["transformer"] < 0.55 * plain["transformer"]
    assert cache.run("m", picture) == picture(loaded(folder, dtype=torch.bfloat16, variant="fp8"))


@pytest.mark.parametrize("name", NAMES)
def test_in_less_room_float8_is_staged_and_then_moves_block_by_block(
    float8_of: FolderOf, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = float8_of(name)
    drawn = picture(loaded(folder, variant="fp8"))
    staged = max(part.nbytes + part.beside for part in held_sizes(folder, "fp8"))
    for room, how in ((staged, "staged"), (staged * 9 // 10, "offloaded")):
        device = CpuDevice(room)
        cache = cache_of(store_of({"m": folder}, device=device))
        caplog.clear()
        assert [cache.run("m", picture), cache.run("m", picture)] == [drawn] * 2
        assert f"how=fp8 weights, {how}" in caplog.text
        assert device.peak_bytes <= room
        assert cache.evict("m", "disk")
        assert device.used_bytes == 0


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The weight files whose contents are read for their keys, as that happens."""
    files: list[Path] = []
    digest = content_key._hashed

    def hashed(file: Any) -> str:
        files.append(file.path)
        return digest(file)

    monkeypatch.setattr(content_key, "_hashed", hashed)
    return files


def test_where_the_plain_weights_fit_no_float8_file_is_read(
    float8_of: FolderOf, read: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_args: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr("falctl.host.cache.recipes.quantised_in", refused)
    monkeypatch.setattr(loading, "store_as_float8", refused)
    folder = float8_of("sd3")
    cache = cache_of(store_of({"m": folder}))
    assert cache.run("m", picture) == picture(loaded(folder))
    assert read
    assert not [path for path in read if "fp8" in path.name]


def test_before_a_507_no_float8_file_is_read_but_its_header(float8_of: FolderOf, read: list[Path]) -> None:
    cache = cache_of(store_of({"m": float8_of("sd3")}, device=CpuDevice(1000)))
    with pytest.raises(ModelTooLargeError) as caught:
        cache.run("m", picture)
    for said in ("staged takes", "fp8 weights, whole takes", "fp8 weights, offloaded takes"):
        assert said in caught.value.detail
    assert not [path for path in read if "fp8" in path.name]


def test_scaled_float8_is_left_out_and_the_507_says_so(folder_of: FolderOf, tmp_path: Path) -> None:
    folder = add_float8(copy_of(folder_of("sd3"), tmp_path), components=("transformer",))
    file = folder / "transformer" / "diffusion_pytorch_model.fp8.safetensors"
    save_file({**load_file(file), "scaled_fp8": torch.zeros(2)}, file, {"format": "pt"})
    cache = cache_of(store_of({"m": folder}, device=CpuDevice(1000)))
    with pytest.raises(ModelTooLargeError) as caught:
        cache.run("m", picture)
    for said in ("no quantised weights", "transformer/diffusion_pytorch_model.fp8.safetensors has scales"):
        assert said in caught.value.detail


class Room:
    """A device whose budget changes, as it does when others take of it."""

    def __init__(self, folder: Path, nbytes: int) -> None:
        self.device = CpuDevice(nbytes)
        self.memory = PrivateMemory()
        self.store = store_of({"m": folder}, device=self.device, memory=self.memory)
        self.cache = cache_of(self.store)

    def draw(self, nbytes: int) -> tuple[str | None, bytes]:
        self.device.budget_bytes = nbytes
        drawn = self.cache.run("m", picture)
        return self.store.loaded_weights("m"), drawn


def test_weights_change_only_when_those_that_are_loaded_do_not_fit(float8_of: FolderOf) -> None:
    folder = float8_of("flux-deep")
    plain, small = picture(loaded(folder)), picture(loaded(folder, variant="fp8"))
    assert plain != small
    little = room_for_float8(folder)
    room = Room(folder, PLENTY)
    assert room.draw(PLENTY) == (None, plain)
    room.cache.evict("m")
    assert room.draw(little) == ("fp8", small)
    assert room.device.used_bytes == sum(part.nbytes for part in room.store.needs("m"))
    assert room.draw(PLENTY) == ("fp8", small), "as it is loaded with them, and they fit"
    room.cache.evict("m")
    assert room.draw(PLENTY) == ("fp8", small), "they are in host memory"
    leave(room.store, "m", drop=True)
    assert room.draw(PLENTY) == (None, plain), "they would have to be read again"
    assert len(room.store.parts()) == len(set(keys_of(room.store, "m"))), "nothing is left of the others"


def test_changing_weights_again_and_again_leaves_no_byte_behind(float8_of: FolderOf) -> None:
    folder = float8_of("flux-deep")
    little = room_for_float8(folder)
    room = Room(folder, PLENTY)
    seen = []
    for _round in range(3):
        room.draw(PLENTY)
        room.cache.evict("m")
        room.draw(little)
        seen.append((room.device.used_bytes, room.memory.used_bytes))
        room.cache.evict("m", "disk")
        assert room.device.used_bytes == 0
    assert len(set(seen)) == 1


def test_a_model_that_others_run_keeps_its_weights(float8_of: FolderOf) -> None:
    folder = float8_of("flux-deep")
    room = Room(folder, PLENTY)
    with room.cache.lease("m") as pipe:
        room.device.budget_bytes = room_for_float8(folder)
        with suppress(ModelTooLargeError), room.cache.lease("m") as same:
            assert same is pipe
        assert room.store.is_constructed("m")
        assert room.store.loaded_weights("m") is None
        room.device.budget_bytes = PLENTY  # no card has less than is on it
        assert picture(pipe) == picture(loaded(folder))


def test_loras_draw_with_float8_weights_what_diffusers_draws_with_both(
    float8_of: FolderOf, tmp_path: Path
) -> None:
    pytest.importorskip("peft", reason="peft is not installed: pip install 'falctl[lora]'")
    from tests.host.cache.test_loras import near, write_lora

    folder = float8_of("flux")
    lora = write_lora(folder, tmp_path / "lora.safetensors", seed=1)
    pipe = loaded(folder, variant="fp8")
    plain = picture(pipe)
    pipe.load_lora_weights(str(tmp_path), weight_name=lora.name, adapter_name="x", use_safetensors=True)
    wanted = picture(pipe)
    assert not near(wanted, plain)

    def find(name: str) -> Folder:
        return Folder(str(folder), loras=(str(lora),) if name == "m+lora" else ())

    store = PipelineStore(find, device=CpuDevice(PLENTY), memory=PrivateMemory(), dtype="float32")
    for name in ("m", "m+lora"):
        store.arrange(name, arranged("fp8"))
    first = picture(bring(store, "m+lora"))
    assert near(first, wanted)
    assert picture(bring(store, "m")) == plain, "the base is as it was"
    leave(store, "m+lora", drop=True)
    assert tiers(store, "m+lora") == {"disk"}
    assert picture(bring(store, "m+lora")) == first
    assert store.loaded_weights("m+lora") == "fp8"
    assert set(keys_of(store, "m")) < set(keys_of(store, "m+lora"))


def test_what_has_no_float8_is_shared_with_the_plain_pipeline(float8_of: FolderOf) -> None:
    folder = float8_of("sd3")
    store = store_of({"plain": folder, "small": folder})
    cache = cache_of(store)
    store.arrange("small", arranged("fp8"))
    with cache.lease("plain") as one:
        store.construct("small")
        keys = {name: set(keys_of(store, name)) for name in ("plain", "small")}
        both = keys["plain"] & keys["small"]
        assert both == {key for key in both if store._components[key].module is one.vae}
        assert len(both) == 1


def test_a_folder_with_float8_files_only_is_converted_up_where_that_fits_and_kept_small_where_not(
    float8_of: FolderOf, tmp_path: Path
) -> None:
    folder = float8_of("flux-deep")
    drawn = picture(loaded(folder, variant="fp8"))
    little = room_for_float8(folder)
    only = drop_plain(copy_of(folder, tmp_path))
    assert Room(only, PLENTY).draw(PLENTY) == (None, drawn)
    assert Room(only, little).draw(little) == ("fp8", drawn)


def test_a_load_that_only_reads_is_cancelled_and_done_again(float8_of: FolderOf) -> None:
    folder = float8_of("flux-deep")
    little = room_for_float8(folder)
    room = Room(folder, little)
    _, drawn = room.draw(little)
    room.cache.evict("m")
    leave(room.store, "m", drop=True)
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(Exception, match=r"^$"):
        room.store.fill("m", cancelled)
    assert room.draw(little) == ("fp8", drawn)


def test_the_log_says_with_which_weights_it_runs(
    float8_of: FolderOf, caplog: pytest.LogCaptureFixture
) -> None:
    folder = float8_of("sd3-deep")
    with caplog.at_level(logging.WARNING, "falctl.host.cache.admission"):
        Room(folder, 0).draw(room_for_float8(folder))
    (line,) = [r.getMessage() for r in caplog.records if "model.arranged" in r.getMessage()]
    assert "how=fp8 weights, whole" in line
    assert "staged takes" in line
