"""Pipelines that do not fit, through a model cache: the same picture in less room, a ladder when memory runs out, a 507."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from falctl.core.activations import Drawing, decode_bytes
from falctl.core.peaks import Draws, LearntPeaks
from falctl.errors import ModelTooLargeError
from falctl.host.cache.admission import Admission
from falctl.host.cache.device import CpuDevice
from falctl.host.cache.pipeline_store import PipelineStore
from falctl.host.cache.private_memory import PrivateMemory
from falctl.toolkit import ModelCache
from falctl.toolkit.cache_hooks import CachePolicy
from falctl.toolkit.steps import watched
from runners.diffusion import AnyModelRunner, Prompt
from tests.host.cache.pipes import loaded, picture
from tests.host.cache.stores import FolderOf, store_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"  # diffusers' schedulers
)
GiB = 1 << 30


def cache_of(store: PipelineStore, **settings: Any) -> ModelCache[Any]:
    """Return a cache that admits by weights alone, unless *settings* say otherwise."""
    admission = Admission(store, **{"counts_drawings": False, **settings})
    return ModelCache(store, policy=admission.policy(CachePolicy()))


def weights_of(store: PipelineStore, name: str) -> int:
    return sum(part.nbytes for part in store.sizes(name))


@pytest.mark.parametrize("name", ["sd3-deep", "flux-deep"])
def test_a_pipeline_of_one_and_a_half_devices_draws_the_same(
    folder_of: FolderOf, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = picture(loaded(folder_of(name)))
    total = weights_of(store_of(folder_of), name)
    device = CpuDevice(total * 2 // 3)
    store = store_of(folder_of, device=device)
    cache = cache_of(store)
    pictures = [cache.run(name, picture) for _draw in range(3)]
    assert pictures == [first] * 3
    assert device.peak_bytes <= device.budget_bytes
    assert caplog.text.count("model.arranged") == 1, "said once"
    assert "how=offloaded" in caplog.text
    assert "whole takes" in caplog.text
    assert "staged takes" in caplog.text
    assert "each pass through transformer copies" in caplog.text
    assert cache.evict(name)
    assert device.used_bytes == 0
    assert cache.run(name, picture) == first, "and again"


@pytest.mark.parametrize("name", ["sdxl", "pixart"])
def test_a_pipeline_in_the_room_of_its_largest_component_is_staged(folder_of: FolderOf, name: str) -> None:
    first = picture(loaded(folder_of(name)))
    device = CpuDevice(max(part.nbytes for part in store_of(folder_of).sizes(name)))
    store = store_of(folder_of, device=device)
    cache = cache_of(store)
    assert [cache.run(name, picture), cache.run(name, picture)] == [first] * 2
    assert device.peak_bytes <= device.budget_bytes
    assert cache.evict(name, "disk")
    assert device.used_bytes == 0


def test_a_model_that_is_there_runs_otherwise_when_the_drawing_changes(
    folder_of: FolderOf, caplog: pytest.LogCaptureFixture
) -> None:
    """A larger drawing has the whole model leave for its stages, and a small one has it back."""
    name = "sd15"
    store = store_of(folder_of, device=CpuDevice(0))
    weights = weights_of(store, name)
    small, large = Drawing(16, 16), Drawing(64, 64)
    device = CpuDevice(decode_bytes(large, element_bytes=4) + max(p.nbytes for p in store.sizes(name)))
    assert device.budget_bytes > weights
    store = store_of(folder_of, device=device)
    cache = cache_of(store, counts_drawings=True, peaks=known_peaks(small, large))
    with caplog.at_level(logging.INFO):
        for drawing in (small, large, large, small):
            cache.run(name, lambda _pipe: None, drawing)
    assert re.findall(r"how=(\w+)", caplog.text) == ["staged", "whole"]


def known_peaks(small: Drawing, large: Drawing) -> LearntPeaks:
    """The small one takes next to nothing, the large one what its formula says."""
    peaks = LearntPeaks()
    for drawing, nbytes in ((small, 1000), (large, decode_bytes(large, element_bytes=4) * 10 // 11)):
        peaks.seen(Draws("StableDiffusionPipeline", drawing, "float32", 4).kind(), nbytes)
    return peaks


def test_what_fits_in_no_way_is_a_507_with_every_number(folder_of: FolderOf) -> None:
    device = CpuDevice(1000)
    cache = cache_of(store_of(folder_of, device=device))
    with pytest.raises(ModelTooLargeError) as caught:
        cache.run("sd3", picture)
    assert caught.value.status == 507
    for said in ("whole takes", "staged takes", "no quantised weights", "offloaded takes", "can have"):
        assert said in caught.value.detail
    assert caught.value.least_bytes is not None
    assert caught.value.least_bytes > 1000
    assert cache.resident == ()
    assert device.used_bytes == 0


def test_a_drawing_that_has_no_room_says_nothing_of_its_model(folder_of: FolderOf) -> None:
    cache = cache_of(store_of(folder_of, device=CpuDevice(1 << 30)), counts_drawings=True)
    with pytest.raises(ModelTooLargeError) as caught:
        cache.run("sd3", picture, Drawing(16384, 16384, 16))
    assert caught.value.least_bytes is None


class Failing(CpuDevice):
    """Refuses its *at*-th allocation, and each after it that is a multiple of *every*; 0: no more."""

    def __init__(self, budget_bytes: int, at: int, every: int = 0) -> None:
        super().__init__(budget_bytes)
        self.count, self.at, self.every = 0, at, every

    def allocate(self, nbytes: int) -> torch.Tensor:
        self.count += 1
        if self.count == self.at or (self.every and self.count > self.at and self.count % self.every == 0):
            msg = f"CUDA out of memory. Tried to allocate {nbytes} bytes"
            raise torch.OutOfMemoryError(msg)
        return super().allocate(nbytes)


@pytest.mark.parametrize(("name", "share"), [("sd3", 0.6), ("flux-deep", 0.5)])
def test_out_of_memory_at_every_allocation_in_turn_costs_a_retry_and_nothing_else(
    folder_of: FolderOf, name: str, share: float
) -> None:
    pipe = loaded(folder_of(name))
    first = picture(pipe)
    total = weights_of(store_of(folder_of), name)
    device = Failing(int(total * share), at=-1)
    store = store_of(folder_of, device=device)
    cache = cache_of(store)
    assert cache.run(name, picture) == first
    allocations = device.count
    assert allocations >= 3
    for at in range(1, allocations + 1):
        assert cache.evict(name)
        assert device.used_bytes == 0, at
        device.count, device.at = 0, at
        assert cache.run(name, picture) == first, at
        assert device.used_bytes <= device.budget_bytes
    assert cache.evict(name, "disk")
    assert device.used_bytes == 0


def test_a_device_that_always_runs_out_is_a_507_and_leaves_nothing(folder_of: FolderOf) -> None:
    for every in (1, 2):
        device = Failing(GiB, at=1, every=every)
        cache = cache_of(store_of(folder_of, device=device))
        with pytest.raises(ModelTooLargeError):
            cache.run("sd3", picture)
        assert cache.evict("sd3", "disk") or not cache.residents()
        assert device.used_bytes == 0


class Greedy:
    """A drawing that runs out of memory *times* times."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.tiled: list[bool] = []

    def __call__(self, pipe: Any) -> str:
        self.tiled.append(pipe.vae.use_tiling)
        if self.left > 0:
            self.left -= 1
            msg = (
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.6 GiB\nmore"
            )
            raise torch.OutOfMemoryError(msg)
        return "drawn"


@pytest.mark.parametrize(("times", "tiled"), [(0, [False]), (1, [False, False]), (2, [False, False, True])])
def test_a_drawing_that_runs_out_is_tried_again_and_then_in_tiles(
    folder_of: FolderOf, times: int, tiled: list[bool], caplog: pytest.LogCaptureFixture
) -> None:
    cache = cache_of(store_of(folder_of))
    drawing = Greedy(times)
    assert cache.run("sd15", drawing) == "drawn"
    assert drawing.tiled == tiled
    assert caplog.text.count("model.out_of_memory") == times
    assert ("; once more" in caplog.text) == (times > 0)
    assert ("; in tiles" in caplog.text) == (times > 1)
    after = Greedy(0)
    cache.run("sd15", after)
    assert after.tiled == [False], "the next is drawn as before"


def test_the_third_time_is_a_507_that_says_what_was_tried(folder_of: FolderOf) -> None:
    device = CpuDevice(GiB)
    cache = cache_of(store_of(folder_of, device=device))
    drawing = Greedy(3)
    with pytest.raises(ModelTooLargeError) as caught:
        cache.run("sd15", drawing)
    assert drawing.tiled == [False, False, True]
    for said in (
        "whole, 0 bytes expected",
        "whole, decoded in tiles",
        "Tried to allocate 2.00 GiB",
        "are free now",
        "1.00 GiB could be",
    ):
        assert said in caught.value.detail
    assert "more" not in caught.value.detail.split("The last time")[1].splitlines()[-1].split("GiB")[-1]
    assert cache.run("sd15", Greedy(0)) == "drawn"
    assert cache.evict("sd15")
    assert device.used_bytes == 0


def test_a_pipeline_without_a_decoder_is_tried_once_more_only(folder_of: FolderOf) -> None:
    cache = cache_of(store_of(folder_of))
    calls: list[int] = []

    def greedy(_pipe: Any) -> None:
        calls.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ModelTooLargeError):
        cache.run("ddpm", greedy)
    assert len(calls) == 2


def test_an_error_of_cublas_counts_and_any_other_does_not(folder_of: FolderOf) -> None:
    cache = cache_of(store_of(folder_of))
    errors = [RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)")]

    def call(_pipe: Any) -> str:
        if errors:
            raise errors.pop()
        return "drawn"

    assert cache.run("sd15", call) == "drawn"
    errors.append(RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        cache.run("sd15", call)


def test_another_error_after_running_out_forgets_the_trouble(folder_of: FolderOf) -> None:
    cache = cache_of(store_of(folder_of))
    drawing = Greedy(2)

    def call(pipe: Any) -> str:
        drawing(pipe)
        raise ValueError("not memory")

    with pytest.raises(ValueError, match="not memory"):
        cache.run("sd15", call)
    after = Greedy(0)
    cache.run("sd15", after)
    assert after.tiled == [False]


def test_more_is_expected_after_memory_ran_out_and_that_is_kept(folder_of: FolderOf, tmp_path: Path) -> None:
    store = store_of(folder_of, device=CpuDevice(GiB))
    cache = cache_of(store, counts_drawings=True, folder=tmp_path)
    drawing = Drawing(64, 64)
    assert cache.run("sd15", Greedy(1), drawing) == "drawn"
    (kept,) = json.loads((tmp_path / "peaks.json").read_text())["peaks"]
    expected = decode_bytes(drawing, element_bytes=4)
    assert kept == ["StableDiffusionPipeline", 64, 64, 2, "float32", False, expected * 5 // 4]
    peaks = LearntPeaks()
    Admission(store, peaks=peaks, folder=tmp_path)
    assert peaks.expected(Draws("StableDiffusionPipeline", drawing, "float32", 4).kind()) == int(
        kept[-1] * 1.1
    )


class Metered(CpuDevice):
    """Counts drawings, too: each takes *drawing_bytes*."""

    measures_drawings = True
    drawing_bytes = 7 << 20

    @contextmanager
    def drawing(self) -> Iterator[None]:
        flat = self.allocate(self.drawing_bytes)
        yield
        del flat


def test_what_a_whole_model_takes_beside_its_weights_is_learnt_where_it_can_be_seen(
    folder_of: FolderOf, tmp_path: Path
) -> None:
    device = Metered(GiB)
    store = store_of(folder_of, device=device)
    cache = cache_of(store, counts_drawings=True, folder=tmp_path)

    def call(_pipe: Any) -> None:
        with device.drawing():
            pass

    cache.run("sd15", call, Drawing(64, 64))
    (kept,) = json.loads((tmp_path / "peaks.json").read_text())["peaks"]
    assert kept[-1] == Metered.drawing_bytes
    plain = cache_of(store_of(folder_of), counts_drawings=True, folder=tmp_path / "none")
    plain.run("sd15", lambda _pipe: None, Drawing(64, 64))
    assert not (tmp_path / "none").exists(), "the CPU device sees no drawings, so nothing is learnt of them"


def test_a_component_without_host_memory_cannot_go_block_by_block(folder_of: FolderOf) -> None:
    name = "sd3-deep"
    total = weights_of(store_of(folder_of), name)
    memory = PrivateMemory(total // 2)
    cache = cache_of(store_of(folder_of, device=CpuDevice(total * 2 // 3), memory=memory))
    with pytest.raises(ModelTooLargeError, match=r"cache\.host_memory"):
        cache.run(name, picture)


def test_two_pipelines_that_share_components_take_turns_staged(folder_of: FolderOf) -> None:
    firsts = {name: picture(loaded(folder_of(name))) for name in ("sd15", "sd15-other-unet")}
    device = CpuDevice(max(part.nbytes for part in store_of(folder_of).sizes("sd15")))
    cache = cache_of(store_of(folder_of, device=device))
    for name in ("sd15", "sd15-other-unet", "sd15", "sd15-other-unet"):
        assert cache.run(name, picture) == firsts[name]
        assert device.peak_bytes <= device.budget_bytes


def test_a_model_that_was_whole_finds_what_another_has_sent_away(folder_of: FolderOf) -> None:
    """Two pipelines share a text encoder and a VAE; one of them is staged, and the other does not hear of it."""
    store = store_of(folder_of, device=CpuDevice(GiB))
    cache = cache_of(store)
    first = cache.run("sd15", picture)
    for key in [part.key for part in store.needs("sd15")]:
        store.evict(key)  # behind the cache's back, as the hooks of a staged pipeline do
    away: list[bool] = []

    def draw(pipe: Any) -> bytes:
        away.append(all(part.tier == "ram" for part in store.needs("sd15")))
        drawn = picture(pipe)
        away.append(all(part.tier == "vram" for part in store.needs("sd15")))
        return drawn

    assert cache.run("sd15", draw) == first
    assert away == [True, True]


def test_the_log_is_quiet_for_a_model_that_fits(
    folder_of: FolderOf, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "falctl.host.cache.admission"):
        cache_of(store_of(folder_of)).run("sd15", picture)
    assert "model.arranged" not in caplog.text


class Context:
    """What AnyModelRunner needs of a host, with a device of its own."""

    device = "cpu"
    models_dtype = "float32"
    models_allow: tuple[str, ...] = ()
    cancelled = False

    def __init__(self, folder: Path, device: CpuDevice) -> None:
        self.models_paths = (folder,)
        self._device = device

    def pipeline_cache(self, find: Any, *, joint: str) -> ModelCache[Any]:
        assert joint == "+"
        store = PipelineStore(find, device=self._device, memory=PrivateMemory(), dtype="float32")
        return cache_of(store)

    def progress(self, step: int, steps: int, preview: object = None) -> None: ...

    def steps(self, pipeline: object, **settings: Any) -> AbstractContextManager[dict[str, Any]]:
        return watched(pipeline, self.progress, **settings)


@pytest.mark.parametrize("name", ["sd3-deep", "flux-deep"])
def test_any_model_runner_draws_the_same_on_a_device_that_is_too_small(
    folder_of: FolderOf, name: str
) -> None:
    total = weights_of(store_of(folder_of), name)
    pictures = []
    for budget in (total, total * 2 // 3):
        app: Any = AnyModelRunner()
        app.runner = Context(folder_of(name).parent, CpuDevice(budget))
        app.setup()
        asked = {"model": name, "prompt": "a photo of the cat", "width": 64, "height": 64, "seed": 3}
        prompt = Prompt.model_validate({**asked, "num_inference_steps": 2, "sync_mode": True})
        pictures.append(app.draw(prompt).images[0].url)
        assert app.runner._device.peak_bytes <= budget
    assert pictures[0] == pictures[1]
