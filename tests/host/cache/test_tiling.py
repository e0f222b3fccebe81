"""Decoding in tiles: on, off again, in tiles that are small enough to help, and left alone where it was on before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from falctl.core.peaks import TILE_SIDE
from falctl.host.cache.tiling import can_tile, decode_in_tiles
from tests.host.cache.pipes import loaded

FolderOf = Callable[[str], Path]


@contextmanager
def tiled_decoding(pipe: Any, *, side: int = TILE_SIDE) -> Iterator[None]:
    """Have *pipe* decode tile by tile for a block."""
    decode_in_tiles(pipe, on=True, side=side)
    try:
        yield
    finally:
        decode_in_tiles(pipe, on=False)


def sizes_seen(pipe: object) -> list[int]:
    """Note the width of what each call of the decoder gets."""
    seen: list[int] = []
    pipe.vae.decoder.register_forward_pre_hook(lambda _module, args: seen.append(args[0].shape[-1]))  # type: ignore[attr-defined]
    return seen


def test_tiles_are_no_larger_than_is_said_and_off_means_as_before(folder_of: FolderOf) -> None:
    pipe = loaded(folder_of("sd15"))
    latents = torch.zeros(1, 4, 8, 8)
    seen = sizes_seen(pipe)
    assert (pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size) == (64, 8)
    with tiled_decoding(pipe, side=32):
        assert pipe.vae.decode(latents).sample.shape[-1] == 64
    assert max(seen) == 4
    assert len(seen) > 1
    seen.clear()
    pipe.vae.decode(latents)
    assert seen == [8]
    assert (pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size) == (64, 8)


def test_a_block_that_raises_turns_tiles_off(folder_of: FolderOf) -> None:
    pipe = loaded(folder_of("sd15"))

    def break_off() -> None:
        with tiled_decoding(pipe):
            assert pipe.vae.use_tiling
            raise RuntimeError("mid-drawing")

    with pytest.raises(RuntimeError, match="mid-drawing"):
        break_off()
    assert not pipe.vae.use_tiling


def test_saying_it_twice_is_saying_it_once(folder_of: FolderOf) -> None:
    pipe = loaded(folder_of("sd15"))
    for on in (True, True, False, False, True):
        decode_in_tiles(pipe, on=on, side=16)
        assert pipe.vae.use_tiling is on
    decode_in_tiles(pipe, on=False)
    assert pipe.vae.tile_sample_min_size == 64


def test_what_its_author_turned_on_stays_on(folder_of: FolderOf) -> None:
    pipe = loaded(folder_of("sd15"))
    pipe.vae.enable_tiling()
    with tiled_decoding(pipe, side=16):
        assert pipe.vae.tile_sample_min_size == 64
    assert pipe.vae.use_tiling


def test_a_pipeline_without_a_decoder_has_no_tiles(folder_of: FolderOf) -> None:
    pipe = loaded(folder_of("ddpm"))
    assert not can_tile(pipe)
    with tiled_decoding(pipe):
        pass
