"""
Has a decoder run out of card 0's memory, really, and exits 0 if what follows is what was promised.

    python -m tests.gpu.out_of_memory_child
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch

from falctl.core.activations import Drawing
from falctl.errors import ModelTooLargeError
from falctl.host.cache.admission import Admission
from falctl.host.cache.device import CudaDevice, Device
from falctl.host.cache.opening import import_libraries
from falctl.host.cache.pipeline_store import PipelineStore
from falctl.host.cache.private_memory import PrivateMemory
from falctl.host.cache.tiling import decode_in_tiles
from falctl.toolkit import ModelCache
from falctl.toolkit.cache_hooks import CachePolicy
from tests.host.cache import tiny_pipelines
from tests.host.cache.stores import Folder

NAME = "sd15"
SIDE = 2048
TILE = 256
CLOSE = 0.02
"""Where memory is short cuDNN takes other ways, whose sums are rounded otherwise."""

Limited = Callable[[int], AbstractContextManager[object]]
"""Lets no more bytes be allocated in a block than that, beside what is there."""


def check(
    folder: Path, device: Device, limited: Limited, *, side: int = SIDE, counts_drawings: bool = True
) -> None:
    """Decode *side* x *side* pixels where there is room, in that of tiles, in that of nothing, and where there is room."""
    store = PipelineStore(
        lambda _name: Folder(str(folder)), device=device, memory=PrivateMemory(), dtype="float32"
    )
    admission = Admission(store, counts_drawings=counts_drawings)
    cache = ModelCache(store, policy=admission.policy(CachePolicy()))
    calls = 0

    def decode(pipe: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        where = pipe._execution_device
        latents = torch.randn(
            (1, 4, side // 8, side // 8), generator=torch.Generator("cpu").manual_seed(5)
        ).to(where)
        with torch.no_grad():
            decoded: torch.Tensor = pipe.vae.decode(latents).sample
        return decoded.cpu()

    def in_tiles(pipe: Any) -> torch.Tensor:
        pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = TILE, TILE // 8
        decode_in_tiles(pipe, on=True)
        try:
            return decode(pipe)
        finally:
            decode_in_tiles(pipe, on=False)

    drawing = Drawing(side, side)
    whole, tiled = cache.run(NAME, decode, drawing), cache.run(NAME, in_tiles, drawing)
    assert not torch.allclose(whole, tiled, atol=CLOSE), "tiles can be told from the whole"

    # A convolution of the last block has its input and its output, of 16 channels each.
    channels_bytes = 16 * side * side * 4
    calls = 0
    with limited(int(1.25 * channels_bytes)):
        found = cache.run(NAME, decode, drawing)
    assert calls == 3, "as it was, once more, in tiles"
    assert torch.allclose(found, tiled, atol=CLOSE)

    calls, refused = 0, ""
    with limited(channels_bytes // 8):
        try:
            cache.run(NAME, decode, drawing)
        except ModelTooLargeError as error:
            refused = str(error)
    assert "in every way that was tried" in refused, "it drew in less than its picture takes"
    assert "tiles" in refused, refused
    assert calls == 3

    assert torch.allclose(cache.run(NAME, decode, drawing), whole, atol=CLOSE), "there is room again"


@contextmanager
def limited_card(nbytes: int) -> Iterator[None]:
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(0) + nbytes) / total, 0)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)


if __name__ == "__main__":
    import_libraries()
    torch.backends.cudnn.allow_tf32 = False  # its roundings are larger than what is looked for here
    with tempfile.TemporaryDirectory() as root:
        check(tiny_pipelines.write(Path(root), NAME), CudaDevice(), limited_card)
