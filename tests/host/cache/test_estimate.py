"""Weights from headers against pipelines that were really saved and loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from falctl.core.activations import Drawing
from falctl.host.cache.estimate import Wanted, float32_parts, full_drawing, usual_drawing, weight_bytes
from falctl.host.cache.folder import Component, read_folder


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DDPM (float32 on disk) and a PixArt with T5, both tiny, as `save_pretrained` writes them."""
    import diffusers
    import torch
    import transformers

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("pipelines")
    unet = diffusers.UNet2DModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    diffusers.DDPMPipeline(unet=unet, scheduler=diffusers.DDPMScheduler()).save_pretrained(root / "ddpm")
    text = transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=100,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    )
    vae = diffusers.AutoencoderKL(block_out_channels=(16,), norm_num_groups=8)
    sd = {"vae": vae, "unet": unet, "text_encoder": text, "scheduler": diffusers.DDIMScheduler()}
    for name, part in sd.items():
        part.save_pretrained(root / "parts" / name)
    return root


def components(root: Path) -> dict[str, Component]:
    return {part.name: part for part in read_folder(root).components}


def held_bytes(module: Any) -> int:
    tensors = {id(t): t for t in [*module.parameters(), *module.buffers()]}
    return sum(t.numel() * t.element_size() for t in tensors.values())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_real_pipeline_takes_what_was_estimated(pipelines: Path, dtype: Wanted) -> None:
    import diffusers
    import torch

    loaded = diffusers.DiffusionPipeline.from_pretrained(pipelines / "ddpm", dtype=getattr(torch, dtype))
    estimated = weight_bytes(components(pipelines / "ddpm")["unet"], dtype)
    assert estimated == pytest.approx(held_bytes(loaded.unet), rel=0.011)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_t5_keeps_its_wo_in_float32_when_loaded_in_float16_only(pipelines: Path, dtype: Wanted) -> None:
    import torch
    import transformers

    index = '{"_class_name": "P", "text_encoder": ["transformers", "T5EncoderModel"]}'
    (pipelines / "parts" / "model_index.json").write_text(index)
    part = components(pipelines / "parts")["text_encoder"]
    loaded = transformers.T5EncoderModel.from_pretrained(part.folder, dtype=getattr(torch, dtype))
    assert weight_bytes(part, dtype) == held_bytes(loaded)
    wo = sum(t.numel for file in part.weights for t in file.tensors if ".wo." in t.name)
    plain = sum(t.numel for file in part.weights for t in file.tensors) * (4 if dtype == "float32" else 2)
    assert weight_bytes(part, dtype) == plain + (2 * wo if dtype == "float16" else 0)
    assert wo


def test_diffusers_classes_keep_their_parts_in_every_dtype_and_unknown_ones_keep_none() -> None:
    def part(library: str, class_name: str) -> Component:
        return Component("x", library, class_name, Path("/"), {}, ())

    for dtype in ("float32", "float16", "bfloat16"):
        assert "norm1" in float32_parts(part("diffusers", "WanTransformer3DModel"), dtype)
    assert float32_parts(part("stable_diffusion", "StableDiffusionSafetyChecker"), "float16") == ()
    assert float32_parts(part("transformers", "CLIPTextModel"), "float16") == ()


def test_sides_that_a_drawing_leaves_out_are_the_usual_ones(folder_of: Callable[[str], Path]) -> None:
    folder = read_folder(folder_of("sd15"))
    usual = usual_drawing(folder)
    assert full_drawing(folder, None) == usual
    assert full_drawing(folder, Drawing(0, 0, 16)) == replace(usual, images=16)
    assert full_drawing(folder, Drawing(8, 0)) == replace(usual, width=8)
    assert full_drawing(folder, Drawing(0, 8)) == replace(usual, height=8)
