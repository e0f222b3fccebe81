"""
A small picture of the latents of a drawing under way: cheap, and rough, since no decoder is asked.

The channels of a latent space are nearly linear in the colours of the picture. The factors for each space are those of
InvokeAI (Apache 2.0, invokeai/app/util/step_callback.py; SD 1.5 by @torridgristle after @erucipe and @keturn, SDXL by
@StAlKeR7779), rounded. A space without factors gives the mean of its channels, in grey.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image as PilImage

    Pixels: TypeAlias = NDArray[np.float32]

PREVIEW_SIDE_MAX: Final = 256

_Factors: TypeAlias = tuple[tuple[float, float, float], ...]

_SD15: Final[_Factors] = (
    (0.344, 0.139, 0.067), (0.125, 0.403, 0.149), (-0.319, 0.251, 0.210), (-0.131, -0.187, -0.745),
)  # fmt: skip
_SDXL: Final[_Factors] = (
    (0.382, 0.493, 0.532), (-0.375, 0.163, 0.174), (0.177, 0.359, -0.205), (-0.435, -0.264, -0.429),
)  # fmt: skip
_SD3: Final[_Factors] = (
    (-0.052, 0.033, 0.075), (-0.058, 0.008, 0.057), (0.161, 0.013, -0.038), (0.144, 0.085, 0.159),
    (0.049, 0.006, -0.067), (0.052, 0.192, 0.063), (0.154, 0.048, 0.071), (-0.086, 0.090, 0.109),
    (-0.124, -0.068, 0.003), (-0.044, 0.078, 0.023), (0.031, 0.064, 0.078), (-0.013, 0.086, -0.088),
    (0.065, 0.059, 0.133), (-0.079, -0.023, -0.128), (-0.099, -0.080, -0.063), (-0.034, -0.080, -0.061),
)  # fmt: skip
_FLUX: Final[_Factors] = (
    (-0.041, 0.015, 0.052), (0.006, 0.029, 0.077), (0.034, -0.068, -0.043), (-0.026, 0.009, 0.046),
    (0.086, 0.078, 0.055), (-0.002, 0.040, 0.016), (0.050, 0.106, 0.115), (-0.021, -0.022, -0.033),
    (-0.031, 0.008, 0.090), (0.085, 0.067, -0.047), (-0.053, 0.024, -0.002), (0.045, -0.003, 0.005),
    (0.089, 0.083, 0.088), (-0.112, -0.030, -0.079), (0.003, -0.048, -0.004), (-0.115, -0.083, -0.060),
)  # fmt: skip
_SPACES: Final = (
    ("StableDiffusionXL", _SDXL),
    ("StableDiffusion3", _SD3),
    ("StableDiffusion", _SD15),
    ("PixArtSigma", _SDXL),
    ("PixArtAlpha", _SD15),
    ("LatentConsistency", _SD15),
    ("Kolors", _SDXL),
    ("Flux", _FLUX),
)
"""By how the name of a pipeline's class begins; the first that fits counts, if it has as many channels."""
_COLOURS: Final = 3


def picture_of(latents: Any, pipeline: str, size: tuple[int, int] | None) -> PilImage | None:
    """
    Return a picture, no side over `PREVIEW_SIDE_MAX`, of the first of *latents*; None: of such ones none can be made.

    *latents* is a tensor of (batch, channels, rows, columns), of video (batch, channels, frames, rows, columns), or of
    patches in a row (batch, patches, channels x 4), whose shape is then that of *size*, width and height, or square.
    *pipeline* is the name of its class. Waits for the card.
    """
    import numpy as np
    from PIL import Image

    if latents is None:
        return None
    array = np.asarray(latents[0].detach().float().cpu().numpy(), dtype=np.float32)
    if array.ndim == 2 and array.shape[1] % 4 == 0:
        array = _unpacked(array, size)
    elif array.ndim == 4:
        array = array[:, array.shape[1] // 2]
    if array.ndim != 3 or not array.size:
        return None
    colours = np.nan_to_num(_coloured(array, pipeline), nan=0.0)
    image = Image.fromarray((colours.clip(0.0, 1.0) * 255.0).astype(np.uint8), mode=None)
    image.thumbnail((PREVIEW_SIDE_MAX, PREVIEW_SIDE_MAX))
    return image


def grid(count: int, *, aspect: float) -> tuple[int, int]:
    """Return the rows and columns of *count* patches in a picture *aspect* times as wide as it is high."""
    pairs = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
    return min(pairs, key=lambda pair: abs(math.log(pair[1] / pair[0] / aspect)))


def _unpacked(patches: Pixels, size: tuple[int, int] | None) -> Pixels:
    width, height = size or (1, 1)
    rows, columns = grid(patches.shape[0], aspect=width / height)
    blocks = patches.reshape(rows, columns, -1, 2, 2).transpose(2, 0, 3, 1, 4)
    return blocks.reshape(-1, 2 * rows, 2 * columns)


def _coloured(array: Pixels, pipeline: str) -> Pixels:
    """Return rows x columns x 3 colours, or rows x columns greys, from 0 to 1."""
    import numpy as np

    channels = array.shape[0]
    if channels == _COLOURS:  # no latents: the picture itself, from -1 to 1
        return array.transpose(1, 2, 0) / np.float32(2) + np.float32(0.5)
    factors = next((found for prefix, found in _SPACES if pipeline.startswith(prefix)), ())
    if len(factors) == channels:
        colours: Pixels = array.transpose(1, 2, 0) @ np.asarray(factors, dtype=np.float32)
        return colours / np.float32(2) + np.float32(0.5)
    grey: Pixels = array.mean(axis=0)
    low, high = float(grey.min()), float(grey.max())
    return (grey - low) / ((high - low) or 1.0)
