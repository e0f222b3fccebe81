"""Float8 variants of a folder's components, made as docs/models.md tells people to make them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

COMPONENTS = ("transformer", "unet", "text_encoder", "text_encoder_2", "text_encoder_3")
"""What is worth it: not the VAE."""
Down = Callable[[torch.Tensor], torch.Tensor]


def e4m3(tensor: torch.Tensor) -> torch.Tensor:
    """Return weights in float8, norms and biases as they are."""
    return tensor.to(torch.float8_e4m3fn) if tensor.dim() > 1 and tensor.is_floating_point() else tensor


def e5m2(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.float8_e5m2) if tensor.dim() > 1 and tensor.is_floating_point() else tensor


def everything(tensor: torch.Tensor) -> torch.Tensor:
    """Return norms and biases in float8, too, as some who make such files do."""
    return tensor.to(torch.float8_e4m3fn) if tensor.is_floating_point() else tensor


def copy_of(folder: Path, to: Path) -> Path:
    """Return a copy of *folder* in *to*."""
    return Path(shutil.copytree(folder, to / folder.name))


def add_float8(
    folder: Path, *, variant: str = "fp8", components: Iterable[str] = COMPONENTS, down: Down = e4m3
) -> Path:
    """Write the float8 variant of those of *components* that *folder* has; return it."""
    for name in components:
        for file in tuple((folder / name).glob("*.safetensors")):
            if file.name.count(".") == 1:
                tensors = {key: down(tensor).contiguous() for key, tensor in load_file(file).items()}
                save_file(tensors, file.with_name(f"{file.stem}.{variant}.safetensors"), {"format": "pt"})
    return folder


def drop_plain(folder: Path, *, components: Iterable[str] = COMPONENTS) -> Path:
    """Remove the plain files of *components*; return *folder*."""
    for name in components:
        for file in tuple((folder / name).glob("*.safetensors")):
            if file.name.count(".") == 1:
                file.unlink()
    return folder
