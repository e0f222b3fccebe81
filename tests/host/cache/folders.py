"""Small diffusers folders, written file by file as the Hub has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file

PARTS: Final = {
    "unet": ["diffusers", "UNet2DModel"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "feature_extractor": [None, None],
}


def write_folder(root: Path, *, seed: float = 1.0, came_from: str = "here") -> Path:
    """Write a folder of the components `PARTS`; *seed* is in the UNet's weights only."""
    index: dict[str, Any] = {
        "_class_name": "SomePipeline",
        "requires_safety_checker": False,
        "layers": [1, 2],
        **PARTS,
    }
    write_json(root / "model_index.json", index)
    write_json(root / "scheduler" / "scheduler_config.json", {})
    write_json(root / "unet" / "config.json", {"size": 8})
    write_json(root / "text_encoder" / "config.json", {"size": 4, "_name_or_path": came_from})
    write_weights(root / "unet" / "diffusion_pytorch_model.safetensors", w=seed)
    write_weights(root / "text_encoder" / "model.safetensors", a=2.0, b=3.0)
    return root


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_weights(path: Path, **values: float) -> None:
    save_file({name: torch.full((10,), value) for name, value in values.items()}, path)


def shard(folder: Path, index: str, **shards: str) -> None:
    """Write *index*, and for each tensor the file that holds it."""
    write_json(folder / index, {"metadata": {}, "weight_map": shards})
    for name in set(shards.values()):
        write_weights(folder / name, **{tensor: 1.0 for tensor, file in shards.items() if file == name})
