"""The demo models draw what they are asked for, in their own style, and are fit to ship."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import torch
from PIL import Image

from runners.demo import DEMO_MODELS, demo_model_path
from tests.demo.judging import DigitReader, StyleSorter, rendered, rescanned
from tools.demo.digits import DIGITS, DigitSplit, load_split
from tools.demo.drawing import draw, load_pipeline
from tools.demo.pictures import STYLES, to_scans
from tools.demo.prompts import DIGIT_WORDS

REPOSITORY: Final = Path(__file__).parents[2]
WANTED: Final = np.repeat(np.array(DIGITS), 10)
SIZE_BYTES_MAX: Final = 6_000_000

every_model = pytest.mark.parametrize("name", DEMO_MODELS)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits() -> DigitSplit:
    return load_split()


@pytest.fixture(scope="module")
def reader(digits: DigitSplit) -> DigitReader:
    return DigitReader(digits.judge)


@pytest.fixture(scope="module")
def sorter(digits: DigitSplit) -> StyleSorter:
    return StyleSorter(digits.judge)


@functools.cache
def drawings(name: str) -> tuple[Image.Image, ...]:
    """Return ten drawings of each digit, drawn once for all tests."""
    pipeline = load_pipeline(demo_model_path(name))
    return tuple(draw(pipeline, [DIGIT_WORDS[digit] for digit in WANTED], first_seed=1000))


def files_of(name: str) -> list[Path]:
    return [path for path in demo_model_path(name).rglob("*") if path.is_file()]


def in_a_fresh_interpreter(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )


# --- the judges --------------------------------------------------------------


def test_no_scan_is_in_two_parts_of_the_split(digits: DigitSplit) -> None:
    parts = [
        {scan.tobytes() for scan in part.scans} for part in (digits.generators, digits.judge, digits.held_out)
    ]
    assert [len(part) for part in parts] == [898, 629, 270]
    assert len(set.union(*parts)) == sum(map(len, parts))


def test_the_reader_reads_real_digits_that_it_never_saw(digits: DigitSplit, reader: DigitReader) -> None:
    assert reader.score(digits.held_out.scans, digits.held_out.labels) >= 0.97


@every_model
def test_the_way_from_picture_to_scan_keeps_real_digits_readable(
    name: str, digits: DigitSplit, reader: DigitReader
) -> None:
    assert reader.score(rescanned(digits.held_out, name), digits.held_out.labels) >= 0.95


@every_model
def test_the_sorter_knows_the_style_of_every_real_picture(
    name: str, digits: DigitSplit, sorter: StyleSorter
) -> None:
    assert set(sorter.sort(rendered(digits.held_out, name))) == {name}


# --- what the models draw ----------------------------------------------------


@every_model
def test_a_model_draws_the_digit_that_its_prompt_names(name: str, reader: DigitReader) -> None:
    scans = to_scans(drawings(name), name)
    assert reader.score(scans, WANTED) >= 0.90


def test_the_reader_fails_a_model_that_is_asked_for_the_next_digit(reader: DigitReader) -> None:
    name = DEMO_MODELS[0]
    following = [DIGIT_WORDS[(digit + 1) % len(DIGITS)] for digit in WANTED]
    scans = to_scans(draw(load_pipeline(demo_model_path(name)), following, first_seed=1000), name)
    assert reader.score(scans, WANTED) < 0.20


@every_model
def test_every_drawing_of_a_model_is_in_its_own_style(name: str, sorter: StyleSorter) -> None:
    assert set(sorter.sort(drawings(name))) == {name}


@pytest.mark.parametrize("name", ["digits-ember", "digits-blueprint"])
def test_the_sorter_fails_drawings_that_lost_their_colour(name: str, sorter: StyleSorter) -> None:
    faded = [image.convert("L").convert("RGB") for image in drawings(name)]
    assert name not in sorter.sort(faded)


@every_model
def test_drawings_of_one_digit_differ_from_seed_to_seed(name: str) -> None:
    assert len({image.tobytes() for image in drawings(name)}) == len(WANTED)


# --- what ships --------------------------------------------------------------


def test_every_demo_model_has_a_style_of_its_own() -> None:
    assert tuple(STYLES) == DEMO_MODELS


def test_the_four_folders_are_at_most_six_megabytes() -> None:
    assert sum(path.stat().st_size for name in DEMO_MODELS for path in files_of(name)) <= SIZE_BYTES_MAX


@every_model
def test_a_folder_holds_safetensors_and_text_only(name: str) -> None:
    assert {path.suffix for path in files_of(name)} == {".safetensors", ".json", ".md"}
    assert all(path.read_text(encoding="utf-8") for path in files_of(name) if path.suffix != ".safetensors")


@every_model
def test_a_model_is_a_stock_pipeline(name: str) -> None:
    index = json.loads((demo_model_path(name) / "model_index.json").read_text(encoding="utf-8"))
    libraries = {part[0] for part in index.values() if isinstance(part, list)}
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert libraries == {"diffusers", "transformers", None}


@pytest.mark.parametrize("part", ["text_encoder/model", "vae/diffusion_pytorch_model"])
def test_the_models_differ_in_their_denoiser_only(part: str) -> None:
    assert len({(demo_model_path(name) / f"{part}.safetensors").read_bytes() for name in DEMO_MODELS}) == 1


@every_model
def test_a_card_credits_the_digits_and_names_their_licence(name: str) -> None:
    card = (demo_model_path(name) / "README.md").read_text(encoding="utf-8")
    for credit in (
        "E. Alpaydin",
        "C. Kaynak",
        "UCI Machine",
        "CC BY 4.0",
        "creativecommons.org/licenses/by/4.0",
    ):
        assert credit in card


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(LookupError, match=r"digits-neon.*digits-classic, digits-ink, digits-ember"):
        demo_model_path("digits-neon")


@pytest.mark.process
def test_asking_for_a_path_does_not_import_torch() -> None:
    result = in_a_fresh_interpreter(
        "import sys, runners.demo as d; d.demo_model_path('digits-ink'); assert 'torch' not in sys.modules"
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.process
def test_all_models_load_and_draw_without_a_network(tmp_path: Path) -> None:
    program = """
import socket
def refuse(*_, **__):
    raise AssertionError("a demo model asked for the network")
socket.socket.connect = socket.getaddrinfo = refuse
from runners.demo import DEMO_MODELS, demo_model_path
from tools.demo.drawing import draw, load_pipeline
for name in DEMO_MODELS:
    [image] = draw(load_pipeline(demo_model_path(name)), ["seven"], first_seed=7)
    print(name, *image.size)
"""
    result = in_a_fresh_interpreter(program, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [f"{name} 64 64" for name in DEMO_MODELS]
