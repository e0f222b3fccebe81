"""
From 8x8 scans to coloured 64x64 pictures, and back.

A picture shows the digit 48 pixels wide inside a margin of 8. Its brightness is coloured along the ramp of a
style, from paper to ink; `to_scans` undoes all of this, so that a classifier of real scans can judge pictures.
"""

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from tools.demo.digits import SCAN_CELLS, Scans

Colour: TypeAlias = tuple[int, int, int]
Ramp: TypeAlias = tuple[Colour, ...]

STYLES: Final[Mapping[str, Ramp]] = {
    "digits-classic": ((0, 0, 0), (255, 255, 255)),
    "digits-ink": ((246, 241, 230), (18, 20, 32)),
    "digits-ember": ((10, 2, 4), (196, 34, 6), (255, 190, 60)),
    "digits-blueprint": ((20, 60, 140), (238, 246, 255)),
}
"""Each style's ramp, evenly spaced from paper to full ink."""

PICTURE_PX: Final = 64

_CELL_PX: Final = 6
_MARGIN_PX: Final = (PICTURE_PX - SCAN_CELLS * _CELL_PX) // 2
_BORDER_CELLS: Final = 2
_STROKE_THRESHOLD: Final = 0.45
_STROKE_SHARPNESS: Final = 9.0
_LUMA: Final = (0.299, 0.587, 0.114)  # ITU-R BT.601, which PIL's mode "L" uses


def render(scans: Scans) -> Tensor:
    """Return the (n, 1, 64, 64) brightness, 0 to 1, of pictures of the scans."""
    # Ink often touches the edge of a scan; an empty border lets those strokes end round instead of cut flat.
    cells = functional.pad(torch.from_numpy(scans)[:, None], [_BORDER_CELLS] * 4)
    side_px = cells.shape[-1] * _CELL_PX
    smooth = functional.interpolate(cells, size=(side_px, side_px), mode="bicubic").clamp(0, 1)
    crisp = _sharpen(smooth)
    low, high = _sharpen(torch.tensor([0.0, 1.0]))
    crop = slice((side_px - PICTURE_PX) // 2, (side_px + PICTURE_PX) // 2)
    return ((crisp - low) / (high - low)).clamp(0, 1)[..., crop, crop]


def colour(brightness: Tensor, style: str) -> Tensor:
    """Return the (n, 3, h, w) RGB, -1 to 1, of (n, 1, h, w) brightness along the ramp of the style."""
    ramp = torch.tensor(STYLES[style], dtype=torch.float32) / 127.5 - 1
    position = brightness[:, 0] * (len(ramp) - 1)
    step = position.floor().clamp(0, len(ramp) - 2).long()
    rgb = torch.lerp(ramp[step], ramp[step + 1], (position - step).unsqueeze(-1))
    return rgb.permute(0, 3, 1, 2).contiguous()


def to_images(rgb: Tensor) -> list[Image.Image]:
    """Return the images of (n, 3, h, w) RGB in -1 to 1."""
    levels = ((rgb.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(picture) for picture in levels.permute(0, 2, 3, 1).numpy()]


def to_scans(images: Sequence[Image.Image], style: str) -> Scans:
    """Return the scans that pictures in this style show: grey, without the margin, averaged to 8x8 cells."""
    paper, ink = _grey(STYLES[style][0]), _grey(STYLES[style][-1])
    grey = np.stack([np.asarray(image.convert("L"), dtype=np.float32) / 255 for image in images])
    crop = slice(_MARGIN_PX, PICTURE_PX - _MARGIN_PX)
    blocks = grey[:, crop, crop].reshape(-1, SCAN_CELLS, _CELL_PX, SCAN_CELLS, _CELL_PX)
    scans: Scans = np.clip((blocks.mean(axis=(2, 4)) - paper) / (ink - paper), 0, 1).astype(np.float32)
    return scans


def _sharpen(brightness: Tensor) -> Tensor:
    return torch.sigmoid((brightness - _STROKE_THRESHOLD) * _STROKE_SHARPNESS)


def _grey(rgb: Colour) -> float:
    return sum(weight * level for weight, level in zip(_LUMA, rgb, strict=True)) / 255
