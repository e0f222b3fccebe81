"""Components one by one: names that the library changed, weights that no file has, weights that cannot be packed."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from falctl.host.cache.arena import Arena
from falctl.host.cache.arrangement import Weights
from falctl.host.cache.components import PackedComponent, hold
from falctl.host.cache.device import CpuDevice
from falctl.host.cache.folder import Component, read_folder
from falctl.host.cache.headers import read_weight_file
from falctl.host.cache.loose_component import LooseComponent
from falctl.host.cache.private_memory import PrivateBlock, PrivateMemory
from falctl.host.cache.staging import StagedPart, Staging
from falctl.host.cache.tensor_names import find_placements
from tests.host.cache.pipes import loaded
from tests.host.cache.stores import FolderOf


def component(folder: Path, **tensors: torch.Tensor) -> Component:
    """Return a component of one file."""
    path = folder / "model.safetensors"
    save_file(tensors, path)
    return Component("part", "somewhere", "Part", folder, {}, (read_weight_file(path),))


def module(**weights: torch.Tensor) -> Any:
    made = torch.nn.Module()
    for name, weight in weights.items():
        made.register_parameter(name, torch.nn.Parameter(weight, requires_grad=False))
    return made


def values(made: Any) -> dict[str, list[float]]:
    return {name: tensor.flatten().tolist() for name, tensor in made.state_dict().items()}


def held(made: Any, source: Component, memory: PrivateMemory | None = None) -> PackedComponent:
    return PackedComponent(made, source, key="k", memory=memory or PrivateMemory())


def there_and_back(part: PackedComponent) -> None:
    part.drop()
    assert (part.part.tier, part.part.host) == ("disk", False)
    part.fill(threading.Event())
    assert (part.part.tier, part.part.host) == ("ram", True)


A, B = torch.arange(6.0).view(2, 3), torch.arange(6.0, 12.0).view(2, 3)


def test_tensors_of_other_names_and_shapes_are_found_by_what_they_hold(tmp_path: Path) -> None:
    source = component(tmp_path, **{"old.query": A.view(2, 3, 1, 1), "old.key": B, "unused": torch.ones(6)})
    made = module(to_q=A.clone(), to_k=B.clone())
    part = held(made, source)
    there_and_back(part)
    assert values(made) == {"to_q": A.flatten().tolist(), "to_k": B.flatten().tolist()}


def test_a_name_that_now_means_another_tensor_is_not_believed(tmp_path: Path) -> None:
    source = component(tmp_path, a=B, b=A)
    made = module(a=A.clone(), b=B.clone())
    there_and_back(held(made, source))
    assert values(made) == {"a": A.flatten().tolist(), "b": B.flatten().tolist()}


def test_one_tensor_of_a_file_may_be_two_of_a_module(tmp_path: Path) -> None:
    made = module(a=A.clone(), b=A.clone())
    there_and_back(held(made, component(tmp_path, a=A)))
    assert values(made) == {"a": A.flatten().tolist(), "b": A.flatten().tolist()}


def test_equal_bytes_of_another_dtype_are_not_taken_for_the_same(tmp_path: Path) -> None:
    whole = torch.arange(4, dtype=torch.int32)
    made = module(a=torch.arange(4.0))
    part = held(made, component(tmp_path, a=whole, b=whole.clone()))
    there_and_back(part)  # 0, 1, 2, 3 once they are converted
    assert values(made) == {"a": [0.0, 1.0, 2.0, 3.0]}


@pytest.mark.parametrize(
    "made",
    [
        module(a=A.clone(), fused=torch.cat([A, B])),
        module(a=A.clone() + 1),
        module(a=A.clone().to(torch.complex128)),
    ],
    ids=["fused", "changed", "dtype"],
)
def test_what_the_files_do_not_give_again_is_not_dropped(
    tmp_path: Path, made: Any, caplog: pytest.LogCaptureFixture
) -> None:
    before, memory = values(made), PrivateMemory()
    part = held(made, component(tmp_path, a=A, b=B), memory)
    part.drop()
    assert (part.part.tier, part.part.host, values(made)) == ("ram", True, before)
    assert "cache.unproved component=part class=Part" in caplog.text
    caplog.clear()
    (tmp_path / "model.safetensors").unlink()
    part.drop()
    assert not caplog.text, "the files are read once for that"
    part.forget()
    assert memory.used_bytes == 0


def test_files_that_have_changed_since_prove_nothing(tmp_path: Path) -> None:
    source = component(tmp_path, a=A)
    made = module(a=A.clone())
    part = held(made, source)
    component(tmp_path, a=B)
    part.drop()
    assert (part.part.tier, values(made)) == ("ram", {"a": A.flatten().tolist()})


def test_clips_prefix_is_seen_through(folder_of: FolderOf, tmp_path: Path) -> None:
    folder = folder_of("sd15")
    saved = load_file(folder / "text_encoder" / "model.safetensors")
    renamed = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in saved.items()}
    source = component(tmp_path, **renamed)
    arena = Arena(loaded(folder).text_encoder)
    assert arena.host is not None
    placements = find_placements(source, arena.layout, arena.host)
    assert placements is not None
    assert len(placements) == len({slot.offset for slot in arena.layout.slots if slot.in_file})
    assert {p.tensor.name for p in placements} <= set(renamed)


def test_large_components_are_proved_a_batch_at_a_time(
    folder_of: FolderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("falctl.host.cache.tensor_names._BATCH_BYTES", 1000)
    unet = next(part for part in read_folder(folder_of("ddpm")).components if part.name == "unet")
    arena = Arena(loaded(folder_of("ddpm")).unet)
    assert arena.host is not None
    placements = find_placements(unet, arena.layout, arena.host)
    assert placements is not None
    assert len(placements) == len({slot.offset for slot in arena.layout.slots})


def test_bytes_that_no_file_has_divide_components_of_equal_files(tmp_path: Path) -> None:
    memory, source = PrivateMemory(), component(tmp_path, a=A)

    def with_buffer(value: float) -> Any:
        made = module(a=A.clone())
        made.register_buffer("noise", torch.full((3,), value), persistent=False)
        return made

    made = [with_buffer(value) for value in (1.0, 1.0, 2.0)]
    parts = [held(one, source, memory) for one in made]
    assert made[0].a.data_ptr() == made[1].a.data_ptr() != made[2].a.data_ptr()
    assert [one.noise.tolist() for one in made] == [[1.0] * 3, [1.0] * 3, [2.0] * 3]
    assert memory.used_bytes == 2 * parts[0].part.nbytes


class Quantised(torch.nn.Parameter):  # type: ignore[misc] # torch is not read for types
    """As bitsandbytes' Params4bit."""


def test_what_cannot_be_packed_is_moved_and_counted_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = module(a=A.clone())
    made.register_parameter("odd", Quantised(torch.ones(5, dtype=torch.uint8), requires_grad=False))
    memory, device = PrivateMemory(), CpuDevice(100)
    with caplog.at_level(logging.WARNING):
        part = hold(made, component(tmp_path, a=A), key="k", memory=memory)
    assert isinstance(part, LooseComponent)
    assert "cache.loose component=part class=Part: odd is a " in caplog.text
    assert (part.part.nbytes, part.part.tier, memory.used_bytes) == (29, "ram", 0)
    part.to_device(device)
    part.to_device(device)
    assert (part.part.tier, part.part.host, device.used_bytes) == ("vram", False, 29)
    part.drop()
    part.evict()
    part.evict()
    part.drop()
    assert (part.part.tier, part.part.host, device.used_bytes) == ("ram", True, 0)
    with pytest.raises(torch.OutOfMemoryError):
        part.to_device(CpuDevice(28))
    assert part.part.tier == "ram"
    part.to_device(device)
    part.forget()
    assert (device.used_bytes, values(made)) == (0, {"a": A.flatten().tolist(), "odd": [1.0] * 5})


class Card(CpuDevice):
    """Says that it is a card."""

    @property
    def torch_device(self) -> torch.device:
        return torch.device("cuda", 0)


class Noted(torch.nn.Module):  # type: ignore[misc] # torch is not read for types
    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []
        self.odd = Quantised(torch.ones(5, dtype=torch.uint8), requires_grad=False)

    def to(self, where: torch.device) -> Noted:
        self.log.append(str(where))
        return self


def test_what_cannot_be_packed_moves_to_a_card_while_it_is_staged() -> None:
    made = Noted()
    part, device = LooseComponent(made, key="k", once=False), Card(100)
    weights = Weights(part)
    with Staging(device).staged([StagedPart("unet", made, weights)]):
        part.to_device(device)
        assert weights.tier == "device"
        part.evict()
    assert made.log == ["cuda:0", "cpu"]


def test_an_evict_waits_for_no_cycle_of_references_that_views_the_device(tmp_path: Path) -> None:
    made = module(a=A.clone())
    part, device = held(made, component(tmp_path, a=A)), CpuDevice(1 << 20)
    part.to_device(device)
    cycle: list[Any] = [made.a.data[0]]
    cycle.append(cycle)
    gc.disable()
    try:
        del cycle
        part.evict()
        assert device.used_bytes == 0
    finally:
        gc.enable()


def test_buffers_that_a_pipeline_has_converted_are_the_components_again(tmp_path: Path) -> None:
    made = module(a=A.clone())
    made.register_buffer("b", B.clone())
    memory, device = PrivateMemory(), CpuDevice(1 << 20)
    part = held(made, component(tmp_path, a=A, b=B), memory)
    part.to_device(device)
    made.to(torch.float16)  # as SDXL does with its VAE
    made.to(torch.float64)
    part.evict()
    assert (made.b.dtype, device.used_bytes) == (torch.float32, 0)
    assert values(made) == {"a": A.flatten().tolist(), "b": B.flatten().tolist()}
    part.drop()
    assert made.b.numel() == 0


class Slow(PrivateMemory):
    """Does something as the block is given."""

    meanwhile: Callable[[], object] | None = None

    def obtain(self, key: str, nbytes: int, *, cancelled: threading.Event | None = None) -> PrivateBlock:
        block = super().obtain(key, nbytes, cancelled=cancelled)
        if self.meanwhile is not None:
            self.meanwhile()
        return block


def test_a_component_that_is_abandoned_while_it_is_read_leaves_no_bytes_when_nobody_uses_it(
    tmp_path: Path,
) -> None:
    memory, made = Slow(), module(a=A.clone())
    part = held(made, component(tmp_path, a=A), memory)
    part.drop()
    assert memory.used_bytes == 0
    memory.meanwhile = part.abandon
    part.fill(threading.Event())
    assert memory.used_bytes == part.part.nbytes
    assert values(made) == {"a": A.flatten().tolist()}, "somebody may be drawing with it"
    memory.meanwhile = None
    del part, made
    gc.collect()
    assert memory.used_bytes == 0
