"""
What a pipeline needs beside its weights while it draws, before the first drawing has shown it.

Denoiser and decoder run one after the other, so the greater of them is the peak. The denoiser's formula and factors are
ComfyUI's (`memory_required` in its model_base.py, with flash attention: batch x latent area x element size x 0.01 x
factor MiB), the decoder's is InvokeAI's (vae_working_memory.py: 2,200 elements for each pixel that comes out). They seed
what is later learnt from the allocator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_DECODED: Final = 2200
"""Elements for each pixel of an image that is decoded."""
_TILED: Final = 1.25
_DENOISED: Final = 0.01 * (1 << 20)
"""Bytes for each latent pixel and byte of its element, at factor 1."""
PIXELS_OF_LATENT: Final = 8
"""Pixels along the side of a latent one, in every family below."""
FACTORS: Final[Mapping[str, float]] = {
    "StableDiffusion": 1.0,
    "StableDiffusionXL": 0.8,
    "StableDiffusion3": 1.2,
    "Flux": 3.1,
    "PixArt": 0.5,
    "Lumina2": 1.2,
    "QwenImage": 1.8,
}
"""By how a pipeline's class name begins; the longest that fits."""
_UNKNOWN: Final = max(FACTORS.values())


@dataclass(frozen=True, slots=True)
class Drawing:
    """What is asked of a pipeline, as far as memory goes. Sizes in pixels; 0 is what the model was trained for."""

    width: int
    height: int
    images: int = 1
    guided: bool = True
    """Whether each image is denoised with its prompt and without it in one batch (classifier-free guidance)."""
    tile: int | None = None
    """Side of the tiles that are decoded one after the other; None: whole images."""


LEAST: Final = Drawing(1, 1, guided=False)
"""Less than anybody draws: what has no room for this has no room for its model."""


def activation_peak_bytes(pipeline_class: str, drawing: Drawing, *, element_bytes: int) -> int:
    """Return the bytes beside the weights that *drawing* takes at its peak, in a dtype of *element_bytes*."""
    return max(
        denoise_bytes(pipeline_class, drawing, element_bytes=element_bytes),
        decode_bytes(drawing, element_bytes=element_bytes),
    )


def denoise_bytes(pipeline_class: str, drawing: Drawing, *, element_bytes: int) -> int:
    """Return the bytes of one step of the denoiser; a class that is not known counts as the dearest that is."""
    known = [family for family in FACTORS if pipeline_class.startswith(family)]
    factor = FACTORS[max(known, key=len)] if known else _UNKNOWN
    batch = drawing.images * (2 if drawing.guided else 1)
    area = -(-drawing.width // PIXELS_OF_LATENT) * -(-drawing.height // PIXELS_OF_LATENT)
    return int(batch * area * element_bytes * _DENOISED * factor)


def decode_bytes(drawing: Drawing, *, element_bytes: int) -> int:
    """Return the bytes that turning latents into pixels takes; tiles are decoded one at a time."""
    pixels = drawing.width * drawing.height
    if drawing.tile is not None and drawing.tile**2 < pixels:
        return int(drawing.tile**2 * _TILED * _DECODED * element_bytes * drawing.images)
    return pixels * _DECODED * element_bytes * drawing.images
