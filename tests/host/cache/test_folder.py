"""A diffusers folder: the files that would be loaded, and a sentence for each folder that would not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from falctl.errors import ModelFilesError
from falctl.host.cache.folder import read_folder, variants
from tests.host.cache.folders import PARTS, shard, write_folder, write_json, write_weights

UNET = "unet/diffusion_pytorch_model.safetensors"


def chosen(root: Path, variant: str | None = None) -> dict[str, list[str]]:
    folder = read_folder(root, variant=variant)
    return {part.name: [file.path.name for file in part.weights] for part in folder.components}


def test_plain_files_are_chosen_and_absent_parts_and_settings_are_no_components(tmp_path: Path) -> None:
    folder = read_folder(write_folder(tmp_path))
    assert folder.class_name == "SomePipeline"
    assert chosen(tmp_path) == {
        "unet": ["diffusion_pytorch_model.safetensors"],
        "text_encoder": ["model.safetensors"],
        "scheduler": [],
    }
    assert [part.size_bytes for part in folder.components] == [40, 80, 0]
    assert folder.components[0].config == {"size": 8}


def test_a_variant_is_chosen_where_a_component_has_it_and_plain_files_elsewhere(tmp_path: Path) -> None:
    write_folder(tmp_path)
    write_weights(tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors", w=1.0)
    assert variants(tmp_path) == ("fp16",)
    assert chosen(tmp_path)["unet"] == ["diffusion_pytorch_model.safetensors"]
    assert chosen(tmp_path, "fp16")["unet"] == ["diffusion_pytorch_model.fp16.safetensors"]
    assert chosen(tmp_path, "fp16")["text_encoder"] == ["model.safetensors"]


def test_a_folder_of_one_variant_only_says_so_until_it_is_asked_for(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / UNET).rename(tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(ModelFilesError, match=r"fp16\.safetensors, and nothing that no variant would load"):
        read_folder(tmp_path)
    assert chosen(tmp_path, *variants(tmp_path))["unet"]


@pytest.mark.parametrize(
    ("index", "variant"),
    [
        ("diffusion_pytorch_model.safetensors.index.json", None),
        ("diffusion_pytorch_model.safetensors.index.fp16.json", "fp16"),
        ("diffusion_pytorch_model.safetensors.fp16.index.json", "fp16"),
    ],
)
def test_diffusers_takes_an_index_before_a_single_file(
    tmp_path: Path, index: str, variant: str | None
) -> None:
    write_folder(tmp_path)
    write_weights(tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors", w=1.0)
    shard(tmp_path / "unet", index, x="one.safetensors", y="two.safetensors", z="one.safetensors")
    assert chosen(tmp_path, variant)["unet"] == ["one.safetensors", "two.safetensors"]


def test_transformers_takes_a_single_file_before_an_index(tmp_path: Path) -> None:
    write_folder(tmp_path)
    shard(tmp_path / "text_encoder", "model.safetensors.index.json", x="one.safetensors")
    assert chosen(tmp_path)["text_encoder"] == ["model.safetensors"]
    (tmp_path / "text_encoder" / "model.safetensors").unlink()
    assert chosen(tmp_path)["text_encoder"] == ["one.safetensors"]


def test_twins_in_other_formats_are_left_alone_and_a_pickle_alone_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert chosen(tmp_path)["unet"] == ["diffusion_pytorch_model.safetensors"]
    (tmp_path / UNET).unlink()
    with pytest.raises(ModelFilesError, match="as a pickle only"):
        read_folder(tmp_path)


def _truncate(root: Path) -> None:
    os.truncate(root / UNET, (root / UNET).stat().st_size - 1)


def _index(**parts: object) -> Callable[[Path], None]:
    return lambda root: write_json(
        root / "model_index.json", {"_class_name": "SomePipeline", **PARTS, **parts}
    )


def _shards(**shards: str) -> Callable[[Path], None]:
    name = "diffusion_pytorch_model.safetensors.index.json"
    return lambda root: write_json(root / "unet" / name, {"weight_map": shards})


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda root: (root / "model_index.json").unlink(), "model_index.json cannot be read"),
        (lambda root: (root / "model_index.json").write_text('{"_class'), "model_index.json cannot be used"),
        (lambda root: (root / "model_index.json").write_text("[" * 100_000), "model_index.json cannot be used"),
        (lambda root: (root / "model_index.json").write_text("[]"), "no JSON object"),
        (lambda root: (root / UNET).unlink(), "not complete: it has no weights"),
        (lambda root: (root / "unet").rename(root / "unet.tmp"), "'unet' of its model_index.json is missing"),
        (lambda root: (root / "unet" / "config.json").unlink(), "config.json cannot be read"),
        (_truncate, "its tensors end at"),
        (lambda root: (root / UNET).write_bytes(b""), "no whole safetensors file"),
        (_shards(w="gone.safetensors"), "gone.safetensors cannot be read"),
        (_shards(other="diffusion_pytorch_model.safetensors"), "does not fit the files"),
        (_shards(w="../../secret.safetensors"), "no weight_map"),
        (_shards(), "no weight_map"),
        (_index(_class_name=["mine", "MyPipeline"]), "runs no code of a model's own"),
        (_index(**{"../unet": ["diffusers", "UNet2DModel"]}), "not a class of an installed library"),
        (_index(unet=["../x", "UNet2DModel"]), "not a class of an installed library"),
        (_index(unet=["mine", "UNet"]), "not a class of an installed library"),
        (lambda root: (root / "unet" / "diffusers.py").write_text(""), "not a class of an installed library"),
    ],
)  # fmt: skip
def test_each_broken_folder_is_refused_by_name(
    harm: Callable[[Path], object], said: str, tmp_path: Path
) -> None:
    root = write_folder(tmp_path / "model")
    write_weights(tmp_path / "secret.safetensors", w=1.0)
    (root / "mine.py").write_text("")
    harm(root)
    with pytest.raises(ModelFilesError, match=said):
        read_folder(root)


def test_links_into_the_hubs_cache_are_followed_and_all_others_out_of_the_folder_refused(
    tmp_path: Path,
) -> None:
    root = write_folder(tmp_path / "models--a" / "snapshots" / "abc")
    blobs = tmp_path / "models--a" / "blobs"
    blobs.mkdir()
    (root / UNET).rename(blobs / "0123")
    (root / UNET).symlink_to("../../../blobs/0123")
    assert chosen(root)["unet"] == ["0123"]
    (blobs / "0123").rename(tmp_path / "elsewhere")
    (root / UNET).unlink()
    (root / UNET).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelFilesError, match="leads out of the model's folder"):
        read_folder(root)


def test_a_component_that_is_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "model")
    (root / "unet").rename(tmp_path / "unet")
    (root / "unet").symlink_to(tmp_path / "unet")
    with pytest.raises(ModelFilesError, match="leads out"):
        read_folder(root)
