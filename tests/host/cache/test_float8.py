"""Weights that stay float8 draw what the same files draw when they are converted up, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from falctl.host.cache.arena import Arena
from falctl.host.cache.estimate import beside_bytes, weight_bytes
from falctl.host.cache.float8 import beside_bytes as beside_bytes_of
from falctl.host.cache.float8 import store_as_float8
from falctl.host.cache.folder import Component, read_folder
from falctl.host.cache.headers import read_weight_file
from falctl.host.cache.layout import survey
from falctl.host.cache.quantised import quantised_in
from falctl.host.cache.tensor_names import find_placements
from tests.host.cache.float8_files import add_float8, copy_of, e4m3, e5m2, everything
from tests.host.cache.pipes import loaded, picture

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"  # diffusers' schedulers
    ),
    pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning"),  # SDXL's, in float16
]
FolderOf = Callable[[str], Path]
KINDS = [torch.float8_e4m3fn, torch.float8_e5m2]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def float8_parts(folder: Path) -> list[Component]:
    return [part for part in quantised_in(read_folder(folder)).sets["fp8"] if part.float8]


def kept(pipe: Any, folder: Path, dtype: torch.dtype) -> Any:
    for part in float8_parts(folder):
        store_as_float8(getattr(pipe, part.name), part, dtype)
    return pipe


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_float8_comes_back_from_every_dtype_bit_for_bit(kind: torch.dtype, dtype: torch.dtype) -> None:
    every = torch.arange(256, dtype=torch.uint8).view(kind)
    numbers = every[~every.to(torch.float32).isnan()]
    assert len(numbers) >= 250
    assert torch.equal(numbers.to(dtype).to(kind).view(torch.uint8), numbers.view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux", "pixart"])
def test_what_stays_float8_draws_what_diffusers_draws_with_the_same_files(
    folder_of: FolderOf, tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    folder = add_float8(copy_of(folder_of(name), tmp_path))
    pipe = loaded(folder, dtype=dtype, variant="fp8")
    drawn = picture(pipe)
    kept(pipe, folder, dtype)
    parts = float8_parts(folder)
    assert len(parts) >= 2
    for part in parts:
        module = getattr(pipe, part.name)
        layout, _tensors = survey(module)
        in_files = sum(slot.nbytes for slot in layout.slots if slot.in_file)
        assert in_files == weight_bytes(part, str(dtype).removeprefix("torch."))  # type: ignore[arg-type]
        assert {s.dtype for s in layout.slots if s.in_file and len(s.shape) > 1} == {torch.float8_e4m3fn}
        assert module.dtype == dtype
    assert picture(pipe) == drawn


@pytest.mark.parametrize("down", [e5m2, everything])
def test_other_float8_and_norms_in_float8_draw_the_same_too(
    folder_of: FolderOf, tmp_path: Path, down: Any
) -> None:
    folder = add_float8(copy_of(folder_of("sd3"), tmp_path), down=down)
    pipe = loaded(folder, variant="fp8")
    drawn = picture(pipe)
    assert picture(kept(pipe, folder, torch.float32)) == drawn
    for part in float8_parts(folder):
        layout, _tensors = survey(getattr(pipe, part.name))
        in_files = sum(slot.nbytes for slot in layout.slots if slot.in_file)
        assert in_files == weight_bytes(part, "float32"), "vectors are converted up"


def test_every_byte_is_found_again_in_the_files(folder_of: FolderOf, tmp_path: Path) -> None:
    folder = add_float8(copy_of(folder_of("flux"), tmp_path), down=everything)
    pipe = kept(loaded(folder, variant="fp8"), folder, torch.float32)
    for part in float8_parts(folder):
        arena = Arena(getattr(pipe, part.name))
        assert arena.host is not None
        placements = find_placements(part, arena.layout, arena.host)
        assert placements is not None
        assert {p.dtype for p in placements} <= {"F8_E4M3", "F32", "I64"}


class Owner(torch.nn.Module):  # type: ignore[misc]
    """Reads a weight of its child, as T5 does, and one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.ones(2, 3))
        self.wo = torch.nn.Linear(3, 2, bias=False)
        self.words = torch.nn.Embedding(5, 3, padding_idx=0)

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.parameters())

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        hidden = (self.words(words) + self.table[0]).to(self.wo.weight.dtype).to(self.dtype)
        return torch.Tensor(self.wo(hidden))


def made(tmp_path: Path, module: torch.nn.Module) -> Component:
    file = tmp_path / "w.safetensors"
    save_file({name: e4m3(tensor) for name, tensor in module.state_dict().items()}, file)
    module.load_state_dict({name: e4m3(t).to(t.dtype) for name, t in module.state_dict().items()})
    return Component("x", "diffusers", "X", tmp_path, {}, (read_weight_file(file),), float8=True)


def test_whoever_reads_a_weight_reads_it_converted_up(tmp_path: Path) -> None:
    module = Owner()
    source, words = made(tmp_path, module), torch.tensor([[0, 4, 1]])
    drawn = module(words)
    store_as_float8(module, source, torch.float32)
    assert {p.dtype for p in module.parameters()} == {torch.float8_e4m3fn}
    assert torch.equal(module(words), drawn)
    assert (module.dtype, module.wo.weight.dtype) == (torch.float32, torch.float32)
    assert type(module).__name__ == "Owner"
    assert isinstance(module.wo, torch.nn.Linear)
    assert torch.equal(copy.deepcopy(module)(words), drawn)
    # The table of words is looked up before it is converted, so that it needs no room beside it.
    assert (beside_bytes_of(module), beside_bytes(source, "float32")) == (24, 60)


def test_a_weight_that_float8_cannot_hold_stays_as_it_is(tmp_path: Path) -> None:
    module = Owner()
    source = made(tmp_path, module)
    module.wo.weight[0, 0] = 0.3
    before = module.wo.weight.clone()
    store_as_float8(module, source, torch.float32)
    assert module.wo._parameters["weight"].dtype == torch.float32
    assert torch.equal(module.wo.weight, before)


def test_weights_that_were_renamed_are_told_by_what_they_hold(tmp_path: Path) -> None:
    module = Owner()
    source, words = made(tmp_path, module), torch.tensor([3])
    drawn = module(words)
    around = torch.nn.ModuleDict({"renamed": module})
    around["other"] = torch.nn.Linear(2, 2)
    around["other"].weight.fill_(0.3)
    store_as_float8(around, source, torch.float32)
    assert {p.dtype for p in module.parameters()} == {torch.float8_e4m3fn}
    assert around["other"].weight.dtype == torch.float32
    assert torch.equal(module(words), drawn)


def test_tied_weights_stay_one_and_what_was_kept_in_float32_is_computed_in_it(tmp_path: Path) -> None:
    module = torch.nn.ModuleDict(
        {"a": torch.nn.Linear(2, 2, bias=False), "b": torch.nn.Linear(2, 2, bias=False)}
    )
    source = made(tmp_path, module)
    module["b"].weight = module["a"].weight
    module["c"] = torch.nn.Linear(2, 2, bias=False)
    module["c"].weight.copy_(e4m3(torch.randn(2, 2)))
    module["a"].half()
    store_as_float8(module, source, torch.float16)
    layout, _tensors = survey(module)
    assert sum(slot.nbytes for slot in {slot.offset: slot for slot in layout.slots}.values()) == 8
    assert [module[name].weight.dtype for name in "abc"] == [torch.float16, torch.float16, torch.float32]


def test_a_module_that_is_cast_is_what_it_was_cast_to(tmp_path: Path) -> None:
    module = Owner()
    source = made(tmp_path, module)
    store_as_float8(module, source, torch.float32)
    module.to(torch.float64)
    assert module.dtype == torch.float64
    assert module(torch.tensor([1])).dtype == torch.float64


def test_a_call_that_is_broken_off_or_comes_in_another_leaves_nothing_behind(tmp_path: Path) -> None:
    module = Owner()
    source, words = made(tmp_path, module), torch.tensor([[0, 4, 1]])
    drawn = module(words)
    store_as_float8(module, source, torch.float32)
    inner: list[torch.Tensor] = []

    def stop(_module: torch.nn.Module, _args: Any) -> None:
        raise RuntimeError("cancelled")

    def again(_module: torch.nn.Module, _args: Any) -> None:
        if not inner:  # as another thread would, in the middle of the first call
            inner.append(drawn)
            inner.append(module(words))

    with pytest.raises(RuntimeError, match="cancelled"), module.wo.register_forward_pre_hook(stop):
        module(words)
    with module.wo.register_forward_pre_hook(again):
        assert torch.equal(module(words), drawn)
    assert torch.equal(inner[1], drawn)
    assert {p.dtype for p in module.parameters()} == {torch.float8_e4m3fn}
