"""
Pipelines of a few hundred megabytes, with random weights: the tests' tiny ones, whose denoiser and T5 are wider here.

The widths are such that tensors are of the shapes of the real ones: few large ones in SDXL's UNet, many in SD3's forty
blocks, and a T5 beside Flux's transformer. For a card there is an SDXL of the real one's size.
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
        {"block_out_channels": (1280, 1920), "layers_per_block": 2, "transformer_layers_per_block": (2, 16)},
    ),
}
_T5: Final[dict[str, Any]] = {"d_model": 768, "d_ff": 2048, "d_kv": 64, "num_heads": 12, "num_layers": 12}

NAMES: Final = ("sd15", "sdxl", "sd3", "flux")
LARGE: Final = "sdxl-7GB"
"""Minutes to make, and 7 GB of disk: for a card only."""


def write(folder: Path, name: str) -> Path:
    """Save the pipeline *name*, one of `NAMES` or `LARGE`, below *folder*; return its own folder. Blocks for seconds."""
    tiny, part, wider = _WIDER[name]
    pipe = tiny_pipelines.build(tiny)
    module = getattr(pipe, part)
    pipe.register_modules(**{part: type(module).from_config({**module.config, **wider})})
    if name == "flux":
        pipe.register_modules(text_encoder_2=_wide_t5(pipe.text_encoder_2))
    path = folder / name
    pipe.save_pretrained(path, safe_serialization=True)
    return path


def _wide_t5(encoder: Any) -> Any:
    config = type(encoder.config)(**{**encoder.config.to_dict(), **_T5})
    return type(encoder)(config)
