"""LoRAs beside the weights of a pipeline: what they draw, what they cost, and that the plain pipeline is not touched."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from falctl.errors import ModelFilesError
from falctl.host.cache.device import CpuDevice
from falctl.host.cache.layout import ALIGN_BYTES
from falctl.host.cache.pipeline_store import PipelineStore
from falctl.host.cache.private_memory import PrivateMemory
from tests.host.cache.pipes import loaded, picture
from tests.host.cache.stores import Folder, FolderOf, bring, keys_of, leave, tiers

peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'falctl[lora]'")

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"  # diffusers' schedulers
    ),
    pytest.mark.filterwarnings(
        "ignore:Already found a `peft_config` attribute:UserWarning"
    ),  # two LoRAs at a time
]


def write_lora(folder: Path, path: Path, *, seed: int, text: bool = False) -> Path:
    """Write a LoRA of random weights for the pipeline in *folder*; *text*: for its first text encoder, too."""
    pipe = loaded(folder)
    torch.manual_seed(seed)
    name = "transformer" if hasattr(pipe, "transformer") else "unet"
    places = {name: ["to_q", "to_v"]} | ({"text_encoder": ["q_proj", "v_proj"]} if text else {})
    layers = {}
    for part, targets in places.items():
        module = getattr(pipe, part)
        module.add_adapter(
            peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False)
        )
        layers[f"{part}_lora_layers"] = peft.get_peft_model_state_dict(module)
    type(pipe).save_lora_weights(path.parent, weight_name=path.name, safe_serialization=True, **layers)
    return path


def near(one: bytes, other: bytes) -> bool:
    """Whether two pictures differ by roundings only: kernels choose their way by where tensors lie."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) <= 2


def drawn_by_diffusers(folder: Path, *loras: Path, scales: tuple[float, ...] = (1.0,)) -> bytes:
    pipe = loaded(folder)
    names = [f"x{i}" for i in range(len(loras))]
    for name, lora in zip(names, loras, strict=True):
        pipe.load_lora_weights(
            str(lora.parent), weight_name=lora.name, adapter_name=name, use_safetensors=True
        )
    pipe.set_adapters(names, list(scales))
    return picture(pipe)


@dataclass(frozen=True, slots=True)
class Files:
    """Two LoRAs for sd15 and one for flux."""

    a: Path
    b: Path
    flux: Path


@pytest.fixture(scope="module")
def files(folder_of: FolderOf, tmp_path_factory: pytest.TempPathFactory) -> Files:
    root = tmp_path_factory.mktemp("loras")
    return Files(
        write_lora(folder_of("sd15"), root / "a.safetensors", seed=1, text=True),
        write_lora(folder_of("sd15"), root / "b.safetensors", seed=2),
        write_lora(folder_of("flux"), root / "flux.safetensors", seed=3),
    )


@dataclass(frozen=True, slots=True)
class World:
    store: PipelineStore
    device: CpuDevice
    memory: PrivateMemory


@pytest.fixture
def world(folder_of: FolderOf, files: Files) -> World:
    def find(name: str) -> Folder:
        base, *loras = name.split("+")
        return Folder(str(folder_of(base)), loras=tuple(str(getattr(files, lora)) for lora in loras))

    device, memory = CpuDevice(1 << 30), PrivateMemory()
    return World(PipelineStore(find, device=device, memory=memory, dtype="float32"), device, memory)


@pytest.mark.parametrize("name", ["sd15+a", "sd15+b", "flux+flux"])
def test_a_pipeline_draws_with_a_lora_as_diffusers_does_and_without_it_as_ever(
    folder_of: FolderOf, files: Files, world: World, name: str
) -> None:
    base, lora = name.split("+")
    plain, wanted = (
        picture(loaded(folder_of(base))),
        drawn_by_diffusers(folder_of(base), getattr(files, lora)),
    )
    assert not near(wanted, plain)
    first = picture(bring(world.store, name))
    assert near(first, wanted)
    for _round in range(2):
        assert picture(bring(world.store, name)) == first
        assert picture(bring(world.store, base)) == plain
        leave(world.store, name)
    leave(world.store, name, drop=True)
    assert tiers(world.store, name) == {"disk"}, "the LoRA's bytes are read from its file again"
    assert picture(bring(world.store, name)) == first


def test_a_lora_costs_its_own_bytes_and_nothing_of_the_base(world: World) -> None:
    bring(world.store, "sd15")
    base_bytes = world.device.used_bytes
    estimated = {part.key: part.nbytes for part in world.store.needs("sd15+a")}
    bring(world.store, "sd15+a")
    own = set(keys_of(world.store, "sd15+a")) - set(keys_of(world.store, "sd15"))
    assert len(own) == 1
    lora_bytes = sum(world.store.parts()[key].nbytes for key in own)
    assert world.device.used_bytes == world.memory.used_bytes == base_bytes + lora_bytes
    assert 0 < estimated[own.pop()] <= lora_bytes < base_bytes / 10
    bring(world.store, "sd15+b")
    world.store.forget("sd15+a")
    world.store.forget("sd15+b")
    assert world.device.used_bytes == world.memory.used_bytes == base_bytes


def test_loras_are_swapped_and_scaled_and_added_without_a_trace(
    folder_of: FolderOf, files: Files, world: World
) -> None:
    folder = folder_of("sd15")
    both = bring(world.store, "sd15+a+b")
    both.set_adapters(["lora0", "lora1"], [0.5, -1.0])
    assert near(picture(both), drawn_by_diffusers(folder, files.a, files.b, scales=(0.5, -1.0)))
    one = bring(world.store, "sd15+b")
    one.set_adapters(["lora0"], [0.25])
    assert near(picture(one), drawn_by_diffusers(folder, files.b, scales=(0.25,)))
    assert both.vae is one.vae
    assert picture(bring(world.store, "sd15")) == picture(loaded(folder))


def test_a_base_that_was_let_go_leaves_the_lora_its_weights(
    folder_of: FolderOf, files: Files, world: World
) -> None:
    bring(world.store, "sd15")
    pipe = bring(world.store, "sd15+a")
    world.store.forget("sd15")
    assert near(picture(pipe), drawn_by_diffusers(folder_of("sd15"), files.a))
    world.store.forget("sd15+a")
    assert (world.device.used_bytes, world.memory.used_bytes) == (0, 0)


def test_a_lora_whose_file_was_replaced_is_loaded_anew(
    folder_of: FolderOf, files: Files, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(files.b.read_bytes())
    memory = PrivateMemory()
    store = PipelineStore(
        lambda _name: Folder(str(folder_of("sd15")), loras=(str(mine),)),
        device=CpuDevice(1 << 30),
        memory=memory,
        dtype="float32",
    )
    bring(store, "x")
    (tmp_path / "new").write_bytes(files.a.read_bytes())
    (tmp_path / "new").rename(mine)
    assert not store.is_constructed("x")
    assert near(picture(bring(store, "x")), drawn_by_diffusers(folder_of("sd15"), files.a))
    store.forget("x")
    mine.write_bytes(mine.read_bytes()[:-1])
    with pytest.raises(ModelFilesError, match=r"^Model 'x' cannot be loaded: .*mine.safetensors is no "):
        store.check("x")
    mine.unlink()
    with pytest.raises(ModelFilesError, match=r"mine.safetensors cannot be read"):
        store.check("x")


def test_a_lora_for_another_architecture_is_refused_and_leaves_nothing(world: World) -> None:
    with pytest.raises(ModelFilesError, match=r"^Model 'sd15\+flux' cannot be loaded: "):
        world.store.construct("sd15+flux")
    assert (dict(world.store.parts()), world.memory.used_bytes) == ({}, 0)
    picture(bring(world.store, "sd15"))


def test_a_lora_draws_the_same_while_components_come_and_go(
    folder_of: FolderOf, files: Files, world: World
) -> None:
    plain = picture(loaded(folder_of("sd15")))
    world.store.construct("sd15")
    assert picture(world.store.place("sd15", "staged")) == plain
    leave(world.store, "sd15")
    world.store.construct("sd15+a")  # its modules are clones of those that have hooks now
    pipe = world.store.place("sd15+a", "staged")
    assert tiers(world.store, "sd15+a") == {"ram", "vram"}
    assert near(picture(pipe), drawn_by_diffusers(folder_of("sd15"), files.a))
    assert picture(world.store.place("sd15", "staged")) == plain
    leave(world.store, "sd15+a")
    assert near(picture(world.store.place("sd15+a")), drawn_by_diffusers(folder_of("sd15"), files.a))
    assert {size.blocks for size in world.store.sizes("sd15+a")} == {()}
    extra = [
        sum(size.nbytes for size in world.store.sizes(name))
        - sum(part.nbytes for part in world.store.needs(name))
        for name in ("sd15", "sd15+a")
    ]
    assert extra[0] == 0
    assert abs(extra[1]) < len(load_file(files.a)) * ALIGN_BYTES, "the LoRA is counted, but for its alignment"


def test_a_skeleton_of_a_lora_can_be_filled_beside_others(world: World) -> None:
    bring(world.store, "sd15")
    bring(world.store, "sd15+b")
    own: Any = set(keys_of(world.store, "sd15+b")) - set(keys_of(world.store, "sd15"))
    for key in own:
        world.store.evict(key)
        world.store.drop(key)
    before = world.device.used_bytes
    world.store.fill("sd15+b", threading.Event())
    world.store.place("sd15+b")
    assert world.device.used_bytes > before
