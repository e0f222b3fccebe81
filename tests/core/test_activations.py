"""Activation peaks: the published figures they come from, and that more never takes less."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falctl.core.activations import FACTORS, Drawing, activation_peak_bytes, decode_bytes, denoise_bytes

MIB = 1 << 20


def test_decoding_a_megapixel_in_float16_takes_4_6_gigabytes() -> None:
    assert decode_bytes(Drawing(1024, 1024), element_bytes=2) == pytest.approx(4.6e9, rel=0.01)


def test_tiles_cut_what_decoding_takes_but_not_below_a_tile() -> None:
    tiled = decode_bytes(Drawing(1024, 1024, tile=512), element_bytes=2)
    assert tiled == 512 * 512 * 1.25 * 2200 * 2
    whole = decode_bytes(Drawing(256, 256), element_bytes=2)
    assert decode_bytes(Drawing(256, 256, tile=512), element_bytes=2) == whole


def test_a_guided_step_of_sdxl_takes_what_comfyui_says() -> None:
    # 2 x 128 x 128 latent pixels x 2 bytes x 0.01 x 0.8 MiB
    expected = 2 * 128 * 128 * 2 * 0.01 * 0.8 * MIB
    assert denoise_bytes("StableDiffusionXLPipeline", Drawing(1024, 1024), element_bytes=2) == int(expected)


def test_the_longest_family_that_fits_is_meant_and_an_unknown_one_counts_as_the_dearest() -> None:
    drawing = Drawing(512, 512, guided=False)
    sizes = {
        name: denoise_bytes(f"{name}Pipeline", drawing, element_bytes=2)
        for name in ("StableDiffusion", "StableDiffusionXL", "StableDiffusion3", "Flux", "Unheard")
    }
    assert sizes["StableDiffusionXL"] < sizes["StableDiffusion"] < sizes["StableDiffusion3"] < sizes["Flux"]
    assert sizes["Unheard"] == sizes["Flux"]


@given(
    st.sampled_from([*FACTORS, "Unheard"]),
    st.integers(8, 4096),
    st.integers(8, 4096),
    st.integers(1, 8),
    st.booleans(),
)
def test_the_peak_is_the_greater_of_both_and_grows_with_everything(
    family: str, width: int, height: int, images: int, guided: bool
) -> None:
    drawing = Drawing(width, height, images, guided)
    peak = activation_peak_bytes(family, drawing, element_bytes=2)
    parts = (denoise_bytes(family, drawing, element_bytes=2), decode_bytes(drawing, element_bytes=2))
    assert peak == max(parts)
    for more in (Drawing(width + 8, height, images, guided), Drawing(width, height, images + 1, guided)):
        assert activation_peak_bytes(family, more, element_bytes=2) > peak
    assert activation_peak_bytes(family, drawing, element_bytes=4) >= 2 * peak - 2
