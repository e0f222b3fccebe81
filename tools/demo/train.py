"""
Train the four demo models and write their folders: `python -m tools.demo.train --out runners/demo`.

Takes about eight minutes of one CPU thread and no network. Every stage has its own seed, so changing one stage
leaves the random numbers of the others alone. Two runs on one machine write the same bytes.
"""

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when diffusers is imported: nothing here needs the hub

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

from tools.demo.autoencoder import encode_pictures, train_autoencoder
from tools.demo.cards import model_card
from tools.demo.denoiser import Lessons, build_scheduler, train_denoiser
from tools.demo.digits import load_split
from tools.demo.pictures import STYLES, colour, render
from tools.demo.text_encoder import PromptEncoder, encode_training_prompts, train_prompt_encoder

_SEED: Final = 20240
_FILE_MODE: Final = 0o644  # safetensors writes 0600, which an installed package must not have
_FOLDER_MODE: Final = 0o755

_Result = TypeVar("_Result")


def train(out: Path) -> None:
    """Train everything and write one folder per style below `out`."""
    digits = load_split().generators
    brightness = render(digits.scans)
    pictures = {style: colour(brightness, style) for style in STYLES}
    encoder = _timed("text encoder", partial(train_prompt_encoder, seed=_SEED))
    prompts = encode_training_prompts(encoder, seed=_SEED + 1)
    all_pictures = torch.cat(list(pictures.values()))
    autoencoder = _timed("autoencoder", partial(train_autoencoder, all_pictures, seed=_SEED + 2))
    for number, (style, shown) in enumerate(pictures.items()):
        lessons = Lessons(encode_pictures(autoencoder, shown), torch.from_numpy(digits.labels), prompts)
        denoiser = _timed(style, partial(train_denoiser, lessons, seed=_SEED + 10 + number))
        _save(out / style, encoder, autoencoder, denoiser)


def _save(
    folder: Path, encoder: PromptEncoder, autoencoder: AutoencoderKL, denoiser: UNet2DConditionModel
) -> None:
    # The text encoder stays float32: loaded with no dtype, transformers keeps what the file has while diffusers
    # makes its own parts float32, and halves and floats do not multiply.
    pipeline = StableDiffusionPipeline(
        vae=autoencoder.half(),
        text_encoder=encoder.model,
        tokenizer=encoder.tokenizer,
        unet=denoiser.half(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    autoencoder.float()
    (folder / "README.md").write_text(model_card(folder.name), encoding="utf-8")
    for path in (folder, *folder.rglob("*")):
        path.chmod(_FOLDER_MODE if path.is_dir() else _FILE_MODE)


def _timed(what: str, work: Callable[[], _Result]) -> _Result:
    wall_at, cpu_at = time.perf_counter(), time.process_time()
    result = work()
    wall_s, cpu_s = time.perf_counter() - wall_at, time.process_time() - cpu_at
    print(f"{what}: {wall_s:.1f} s, {cpu_s:.1f} s of CPU", flush=True)
    return result


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder that receives one folder per model")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # more threads are slower on networks this small, and change the sums
    torch.use_deterministic_algorithms(mode=True)
    train(arguments.out)


if __name__ == "__main__":
    main()
