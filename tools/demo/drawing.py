"""Load a demo model and draw with it, one seed per picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from diffusers import DiffusionPipeline
from PIL import Image

_STEPS: Final = 10
_GUIDANCE: Final = 2.0
_BATCH: Final = 20


def load_pipeline(folder: Path, *, dtype: torch.dtype = torch.float32) -> DiffusionPipeline:
    """Return the pipeline in the folder, on the CPU, with its progress bar off."""
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: DiffusionPipeline, prompts: Sequence[str], *, first_seed: int) -> list[Image.Image]:
    """Return one picture per prompt; the n-th is drawn from seed `first_seed + n`."""
    images: list[Image.Image] = []
    for start in range(0, len(prompts), _BATCH):
        batch = list(prompts[start : start + _BATCH])
        seeds = range(first_seed + start, first_seed + start + len(batch))
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        images += pipeline(
            batch, num_inference_steps=_STEPS, guidance_scale=_GUIDANCE, generator=generators
        ).images
    return images
