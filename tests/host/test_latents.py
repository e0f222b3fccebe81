"""A rough picture of latents, of whatever shape, and small."""

from __future__ import annotations

import pytest
import torch

from falctl.toolkit.latents import PREVIEW_SIDE_MAX, grid, picture_of


def test_the_channels_of_a_known_space_become_colours() -> None:
    latents = torch.zeros(2, 4, 5, 7)
    latents[0, 3] = 1.0  # of SD 1.5, the channel that takes blue away
    picture = picture_of(latents, "StableDiffusionPipeline", None)
    assert picture is not None
    assert (picture.size, picture.mode) == ((7, 5), "RGB")
    red, green, blue = picture.getpixel((0, 0))  # type: ignore[misc]
    assert (red, green, blue) == (110, 103, 32)


def test_the_space_is_that_of_the_pipeline() -> None:
    latents = torch.ones(1, 4, 2, 2)
    colours = {
        picture_of(latents, name, None).getpixel((0, 0))  # type: ignore[union-attr]
        for name in ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "FluxPipeline")
    }
    assert len(colours) == 3


def test_a_space_that_is_not_known_gives_greys_that_use_the_whole_scale() -> None:
    latents = torch.zeros(1, 9, 1, 3)
    latents[0, :, 0] = torch.tensor([-2.0, 0.0, 2.0])
    picture = picture_of(latents, "NobodysPipeline", None)
    assert picture is not None
    assert (picture.mode, list(picture.tobytes())) == ("L", [0, 127, 255])


def test_latents_that_are_all_the_same_are_no_division_by_zero() -> None:
    assert picture_of(torch.ones(1, 9, 2, 2), "NobodysPipeline", None) is not None


def test_three_channels_are_the_picture_itself() -> None:
    picture = picture_of(torch.ones(1, 3, 2, 2), "DDPMPipeline", None)
    assert picture is not None
    assert picture.getpixel((1, 1)) == (255, 255, 255)


@pytest.mark.parametrize(("size", "shape"), [((96, 32), (12, 4)), ((32, 96), (4, 12)), (None, (8, 6))])
def test_patches_in_a_row_are_put_back_in_their_places(
    size: tuple[int, int] | None, shape: tuple[int, int]
) -> None:
    columns, rows = shape
    latents = torch.arange(16.0 * rows * columns).reshape(1, 16, rows, columns)
    # As FLUX packs them.
    packed = latents.view(1, 16, rows // 2, 2, columns // 2, 2).permute(0, 2, 4, 1, 3, 5)
    packed = packed.reshape(1, rows * columns // 4, 64)
    picture = picture_of(packed / 700, "FluxPipeline", size)
    plain = picture_of(latents / 700, "FluxPipeline", None)
    assert picture is not None
    assert plain is not None
    assert picture.size == shape
    assert picture.tobytes() == plain.tobytes()


def test_of_a_video_the_frame_in_the_middle_is_shown() -> None:
    latents = torch.zeros(1, 3, 5, 2, 2)
    latents[:, :, 2] = 1.0
    picture = picture_of(latents, "WanPipeline", None)
    assert picture is not None
    assert (picture.size, picture.getpixel((0, 0))) == ((2, 2), (255, 255, 255))


def test_it_is_small_however_large_the_latents_are() -> None:
    picture = picture_of(torch.rand(1, 4, 300, 1000), "StableDiffusionPipeline", None)
    assert picture is not None
    assert max(picture.size) == PREVIEW_SIDE_MAX


@pytest.mark.parametrize("latents", [None, torch.zeros(1, 7), torch.zeros(1, 10, 7), torch.zeros(1, 4, 0, 0)])
def test_of_what_has_no_shape_of_a_picture_none_is_made(latents: torch.Tensor | None) -> None:
    assert picture_of(latents, "StableDiffusionPipeline", None) is None


def test_half_precision_and_broken_numbers_make_a_picture_too() -> None:
    latents = torch.full((1, 4, 2, 2), float("nan"), dtype=torch.bfloat16)
    assert picture_of(latents, "StableDiffusionPipeline", None) is not None


def test_a_grid_is_as_near_to_the_shape_asked_for_as_the_number_allows() -> None:
    assert grid(4096, aspect=1.0) == (64, 64)
    assert grid(6144, aspect=1.5) == (64, 96)
    assert grid(7, aspect=1.0) in {(1, 7), (7, 1)}
