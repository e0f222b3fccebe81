"""
A pipeline's decoder at work tile by tile: a fraction of the memory, and faint seams.

diffusers' own tiles are as large as the images that a decoder was trained for (1,024 pixels for SDXL), which helps with
none of those; ours are at most `falctl.core.peaks.TILE_SIDE`.
"""

from __future__ import annotations

from typing import Any, Final

from falctl.core.peaks import TILE_SIDE

_MARK: Final = "_falctl_tiles"
"""On a decoder that works in tiles because of us: the sizes that it had before."""


def can_tile(pipe: Any) -> bool:
    """Return whether *pipe* has a decoder that can work in tiles."""
    return hasattr(getattr(pipe, "vae", None), "enable_tiling")


def decode_in_tiles(pipe: Any, *, on: bool, side: int = TILE_SIDE) -> None:
    """Have *pipe* decode tile by tile from now on, or not any more; one whose author turned it on stays as it is."""
    if not can_tile(pipe):
        return
    vae = pipe.vae
    ours = _MARK in vae.__dict__
    if on and not ours and not getattr(vae, "use_tiling", False):
        vae.enable_tiling()
        vae.__dict__[_MARK] = _shrink(vae, side)
    elif ours and not on:
        vae.disable_tiling()
        for name, size in vae.__dict__.pop(_MARK).items():
            setattr(vae, name, size)


def _shrink(vae: Any, side: int) -> dict[str, int]:
    """Make *vae*'s tiles *side* pixels wide at most; return the sizes that they had, by the attributes' names."""
    pixels, latents = getattr(vae, "tile_sample_min_size", 0), getattr(vae, "tile_latent_min_size", 0)
    if not isinstance(pixels, int) or not isinstance(latents, int) or pixels <= side:
        return {}
    vae.tile_latent_min_size = max(1, latents * side // pixels)
    vae.tile_sample_min_size = side
    return {"tile_sample_min_size": pixels, "tile_latent_min_size": latents}
