"""
Pipelines of a few hundred megabytes, with random weights: the tests' tiny ones, whose denoiser and T5 are wider here.

The widths are such that tensors are of the shapes of the real ones: few large ones in SDXL's UNet, many in SD3's forty
blocks, and a T5 beside Flux's transformer. For a card there is an SDXL with the real one's blocks, and as many bytes as the
real one has in half precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tests.host.cache import tiny_pipelines

_WIDER: Final[Mapping[str, tuple[str, str, dict[str, Any]]]] = {
    "sd15": ("sd15", "unet", {"block_out_channels": (256, 640)}),
    "sdxl": ("sdxl", "unet", {"block_out_channels": (256, 512)}),
    "sd3": (
        "sd3",
        "transformer",
        {"num_attention_heads": 32, "caption_projection_dim": 256, "num_layers": 40},
    ),
    "flux": (
        "flux",
        "transformer",
        {"num_attention_heads": 24, "attention_head_dim": 32, "axes_dims_rope": (8, 12, 12)},
    ),
    "sdxl-7GB": (
        "sdxl",
        "unet",
        {
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": (5, 10, 20),
            "transformer_layers_per_block": (1, 2, 7),
            "layers_per_block": 2,
            "norm_num_groups": 32,
        },
    ),
}
_T5: Final[dict[str, Any]] = {"d_model": 768, "d_ff": 2048, "d_kv": 64, "num_heads": 12, "num_layers": 12}

NAMES: Final = ("sd15", "sdxl", "sd3", "flux")
LARGE: Final = "sdxl-7GB"
"""Half a minute to make, and 7 GB of disk: for a card only."""


def widened(name: str) -> Any:
    """Return the pipeline *name*, one of `NAMES` or `LARGE`, with its denoiser as wide as it is to be."""
    tiny, part, wider = _WIDER[name]
    pipe = tiny_pipelines.build(tiny)
    module = getattr(pipe, part)
    pipe.register_modules(**{part: type(module).from_config({**module.config, **wider})})
    return pipe


def write(folder: Path, name: str) -> Path:
    """Save the pipeline *name*, one of `NAMES` or `LARGE`, below *folder*; return its own folder. Blocks for seconds."""
    pipe = widened(name)
    if name == "flux":
        pipe.register_modules(text_encoder_2=_wide_t5(pipe.text_encoder_2))
    path = folder / name
    pipe.save_pretrained(path, safe_serialization=True)
    return path


def _wide_t5(encoder: Any) -> Any:
    config = type(encoder.config)(**{**encoder.config.to_dict(), **_T5})
    return type(encoder)(config)
