"""A loaded tiny pipeline, and the picture that it draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch

from falctl.host.cache.arena import Arena

SIDE = 64


def loaded(folder: Path, *, dtype: torch.dtype = torch.float32, variant: str | None = None) -> Any:
    pipe = diffusers.DiffusionPipeline.from_pretrained(
        folder, dtype=dtype, variant=variant, use_safetensors=True, local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def to_skeleton(arena: Arena) -> None:
    arena.evict()
    arena.drop_host()


def components(pipe: Any) -> dict[str, Any]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def picture(pipe: Any) -> bytes:
    """Draw with a seed of ours; two steps."""
    settings: dict[str, Any] = {"generator": torch.Generator().manual_seed(3), "num_inference_steps": 2}
    if "vae" in pipe.components:
        settings |= {"prompt": "a photo of the cat", "height": SIDE, "width": SIDE}
    image = pipe(**settings).images[0]
    return bytes(image.tobytes())
