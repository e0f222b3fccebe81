"""
Draw a page of digits to look at: `python -m tools.demo.contact_sheet --out sheet.png`.

One block per model: a column for each prompted digit with seven drawings, and below them a real scan that no
model was trained on, rendered in the same style.
"""

import argparse
import os
from pathlib import Path
from typing import Final

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when diffusers is imported

import numpy as np
import torch
from PIL import Image, ImageDraw

from runners.demo import DEMO_MODELS, demo_model_path
from tools.demo.digits import DIGITS, load_split
from tools.demo.drawing import draw, load_pipeline
from tools.demo.pictures import PICTURE_PX, colour, render, to_images
from tools.demo.prompts import DIGIT_WORDS

_DRAWINGS_PER_DIGIT: Final = 7
_TITLE_PX: Final = 16
_GAP_PX: Final = 8
_BLOCK_WIDTH_PX: Final = len(DIGITS) * PICTURE_PX + _GAP_PX
_BLOCK_HEIGHT_PX: Final = _TITLE_PX + (_DRAWINGS_PER_DIGIT + 1) * PICTURE_PX + 2 * _GAP_PX
_COLUMNS: Final = 2


def contact_sheet() -> Image.Image:
    """Return the page, blocks two abreast."""
    rows = -(-len(DEMO_MODELS) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * _BLOCK_WIDTH_PX, rows * _BLOCK_HEIGHT_PX), "dimgray")
    for number, name in enumerate(DEMO_MODELS):
        row, column = divmod(number, _COLUMNS)
        sheet.paste(_block(name), (column * _BLOCK_WIDTH_PX, row * _BLOCK_HEIGHT_PX))
    return sheet


def _block(name: str) -> Image.Image:
    block = Image.new("RGB", (_BLOCK_WIDTH_PX, _BLOCK_HEIGHT_PX), "dimgray")
    ImageDraw.Draw(block).text((4, 2), f"{name}: drawn by prompt; last row is real", fill="white")
    prompts = [word for _ in range(_DRAWINGS_PER_DIGIT) for word in DIGIT_WORDS]
    drawn = draw(load_pipeline(demo_model_path(name)), prompts, first_seed=0)
    for number, image in enumerate(drawn):
        row, column = divmod(number, len(DIGITS))
        block.paste(image, (column * PICTURE_PX, _TITLE_PX + row * PICTURE_PX))
    for column, image in enumerate(_real_pictures(name)):
        block.paste(image, (column * PICTURE_PX, _TITLE_PX + _GAP_PX + _DRAWINGS_PER_DIGIT * PICTURE_PX))
    return block


def _real_pictures(style: str) -> list[Image.Image]:
    judge = load_split().judge
    scans = np.stack([judge.scans[judge.labels == digit][0] for digit in DIGITS])
    return to_images(colour(render(scans), style))


def main() -> None:
    """Read the command line and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the PNG file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    contact_sheet().save(arguments.out)


if __name__ == "__main__":
    main()
