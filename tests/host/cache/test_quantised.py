"""Which quantised weights a folder has is told from headers, and files that are no plain float8 are left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from falctl.errors import ModelFilesError
from falctl.host.cache.content_key import FileDigests, component_key
from falctl.host.cache.estimate import beside_bytes, weight_bytes
from falctl.host.cache.folder import Component, PipelineFolder, read_folder
from falctl.host.cache.quantised import UNNAMED, quantised_in
from falctl.host.cache.recipes import Recipes
from tests.host.cache.float8_files import add_float8, copy_of, drop_plain, e5m2

FolderOf = Callable[[str], Path]


@pytest.fixture
def flux(folder_of: FolderOf, tmp_path: Path) -> Path:
    return copy_of(folder_of("flux"), tmp_path)


def variants_in(folder: Path) -> dict[str, dict[str, str | None]]:
    sets = quantised_in(read_folder(folder)).sets
    return {name: {p.name: p.variant for p in parts if p.float8} for name, parts in sets.items()}


def part(folder: PipelineFolder, name: str) -> Component:
    return next(part for part in folder.components if part.name == name)


def rewrite(file: Path, **tensors: torch.Tensor | None) -> None:
    """Put *tensors* into *file* in place of those of their names ("__" is a dot); None: take it out."""
    held = load_file(file)
    for name, tensor in tensors.items():
        held.pop(name.replace("__", "."), None)
        if tensor is not None:
            held[name.replace("__", ".")] = tensor
    save_file(held, file, {"format": "pt"})


def test_each_component_has_its_quantised_variant_or_stays_as_it_is(flux: Path) -> None:
    assert variants_in(flux) == {}
    add_float8(flux, components=("transformer", "text_encoder_2"))
    assert variants_in(flux) == {"fp8": {"transformer": "fp8", "text_encoder_2": "fp8"}}
    parts = quantised_in(read_folder(flux)).sets["fp8"]
    assert [p.name for p in parts] == [p.name for p in read_folder(flux).components]
    assert part(read_folder(flux), "vae") in parts, "it is the plain pipeline's"


def test_what_the_headers_say_counts_and_not_the_name(flux: Path) -> None:
    add_float8(flux, variant="small", components=("transformer",))
    add_float8(flux, variant="fp8", components=("transformer",), down=lambda tensor: tensor.to(torch.float16))
    assert variants_in(flux) == {"small": {"transformer": "small"}}


def test_three_bits_of_mantissa_come_before_two_and_a_component_without_the_variant_has_its_best(
    flux: Path,
) -> None:
    add_float8(flux, variant="a", components=("transformer",), down=e5m2)
    add_float8(flux, variant="b", components=("transformer", "text_encoder_2"))
    assert variants_in(flux) == {
        "b": {"transformer": "b", "text_encoder_2": "b"},
        "a": {"transformer": "a", "text_encoder_2": "b"},
    }
    assert list(variants_in(flux)) == ["b", "a"]


def test_shards_of_both_libraries_are_found(flux: Path) -> None:
    add_float8(flux, components=("transformer", "text_encoder_2"))
    for name, stem in (("transformer", "diffusion_pytorch_model"), ("text_encoder_2", "model")):
        whole = flux / name / f"{stem}.fp8.safetensors"
        tensors = load_file(whole)
        whole.unlink()
        names = sorted(tensors)
        halves = names[: len(names) // 2], names[len(names) // 2 :]
        files = [f"{stem}.fp8-0000{i}-of-00002.safetensors" for i in (1, 2)]
        for half, file in zip(halves, files, strict=True):
            save_file({key: tensors[key] for key in half}, flux / name / file, {"format": "pt"})
        index = {key: file for half, file in zip(halves, files, strict=True) for key in half}
        text = json.dumps({"weight_map": index})
        (flux / name / f"{stem}.safetensors.index.fp8.json").write_text(text)
    assert variants_in(flux) == {"fp8": {"transformer": "fp8", "text_encoder_2": "fp8"}}


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({"proj_out__scale_weight": torch.ones(())}, "has scales beside its float8 weights (proj_out.scale_weight)"),
        ({"scaled_fp8": torch.zeros(2)}, "has scales beside its float8 weights (scaled_fp8)"),
        ({"proj_out__amax": torch.ones(())}, "has tensors that the plain weights have not, such as proj_out.amax"),
        ({"proj_out__weight": None}, "does not have the plain weights' proj_out.weight, or has it in another shape"),
        ({"proj_out__weight": torch.ones(2, 2)}, "does not have the plain weights' proj_out.weight"),
    ],
)  # fmt: skip
def test_files_that_are_not_the_plain_weights_in_float8_are_left_out_and_why_is_told(
    flux: Path, tensors: dict[str, torch.Tensor | None], why: str
) -> None:
    add_float8(flux, components=("transformer", "text_encoder_2"))
    rewrite(flux / "transformer" / "diffusion_pytorch_model.fp8.safetensors", **tensors)
    found = quantised_in(read_folder(flux))
    assert variants_in(flux) == {"fp8": {"text_encoder_2": "fp8"}}
    (told,) = found.left_out
    assert told.startswith(f"transformer/diffusion_pytorch_model.fp8.safetensors {why}")


def test_a_half_written_variant_is_left_out_and_told(flux: Path) -> None:
    add_float8(flux, components=("transformer",))
    file = flux / "transformer" / "diffusion_pytorch_model.fp8.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    found = quantised_in(read_folder(flux))
    assert found.sets == {}
    assert str(file) in found.left_out[0]


def test_what_a_librarys_own_quantiser_made_is_left_to_it(flux: Path) -> None:
    add_float8(flux, components=("transformer",))
    config = flux / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": {}}))
    assert variants_in(flux) == {}


def test_a_folder_whose_plain_files_are_float8_can_be_kept_so(flux: Path) -> None:
    drop_plain(add_float8(flux, components=("transformer",)), components=("transformer",))
    file = flux / "transformer" / "diffusion_pytorch_model.fp8.safetensors"
    file.rename(file.with_name("diffusion_pytorch_model.safetensors"))
    assert variants_in(flux) == {UNNAMED: {"transformer": None}}


def test_scales_beside_the_only_weights_are_an_error_that_names_them(flux: Path) -> None:
    drop_plain(add_float8(flux, components=("transformer",)), components=("transformer",))
    recipes = Recipes("float32", FileDigests())
    assert recipes.of(flux).variant == "fp8"
    rewrite(flux / "transformer" / "diffusion_pytorch_model.fp8.safetensors", scaled_fp8=torch.zeros(2))
    with pytest.raises(
        ModelFilesError, match=r"fp8\.safetensors has scales .*\(scaled_fp8\), which diffusers"
    ):
        recipes.of(flux)


def test_a_variant_that_is_not_quantised_is_taken_before_one_that_is(flux: Path) -> None:
    add_float8(flux, variant="a", components=("transformer",))
    add_float8(flux, variant="b", components=("transformer",), down=lambda tensor: tensor.to(torch.float16))
    drop_plain(flux, components=("transformer",))
    assert Recipes("float32", FileDigests()).of(flux).variant == "b"


def test_a_component_kept_in_float8_has_a_key_of_its_own(flux: Path) -> None:
    drop_plain(add_float8(flux, components=("transformer",)), components=("transformer",))
    up = read_folder(flux, variant="fp8")
    (kept,) = quantised_in(up).sets.values()
    digests = {file.path: "0" * 64 for part in up.components for file in part.weights}

    def keys(parts: tuple[Component, ...]) -> list[str]:
        weighty = (part for part in parts if part.weights)
        return [component_key(p, dtype="float32", versions={}, digests=digests) for p in weighty]

    changed = [a != b for a, b in zip(keys(up.components), keys(kept), strict=True)]
    assert [p.float8 for p in kept if p.weights] == changed
    assert sum(changed) == 1


def test_the_bytes_of_float8_are_known_from_headers(flux: Path) -> None:
    add_float8(flux, components=("transformer",))
    plain = part(read_folder(flux), "transformer")
    small = next(p for p in quantised_in(read_folder(flux)).sets["fp8"] if p.name == "transformer")
    tensors = [t for file in plain.weights for t in file.tensors]
    vectors = sum(4 * t.numel for t in tensors if len(t.shape) == 1)
    matrices = [t.numel for t in tensors if len(t.shape) > 1]
    assert weight_bytes(plain, "float32") == vectors + 4 * sum(matrices)
    assert weight_bytes(small, "float32") == vectors + sum(matrices)
    assert (beside_bytes(plain, "float32"), beside_bytes(small, "float32")) == (0, 4 * max(matrices))
