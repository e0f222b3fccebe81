"""Every step of a real pipeline is reported, whatever its architecture, and a report that raises ends it and harms nothing."""

from __future__ import annotations

import threading
from itertools import pairwise
from typing import Any

import diffusers
import pytest
import torch

from falctl.toolkit import RequestCancelled
from falctl.toolkit.steps import DENOISERS, takes_callback, watched
from tests.host.cache import tiny_pipelines
from tests.host.cache.pipes import components
from tests.host.cache.tiny_pipelines import ARCHITECTURES

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"  # diffusers' schedulers
)

STEPS = 3
WITHOUT_CALLBACK = ("pixart", "ddpm")


class Heard:
    """A report that notes what it is told, and raises once so many steps are done."""

    def __init__(self, *, cancel_at: int | None = None) -> None:
        self.told: list[tuple[int, int]] = []
        self.pictures: list[Any] = []
        self.cancel_at = cancel_at

    def __call__(self, step: int, total: int, preview: Any) -> None:
        if self.cancel_at is not None and step >= self.cancel_at:
            raise RequestCancelled
        self.told.append((step, total))
        if preview is not None:
            self.pictures.append(preview())


def built(name: str) -> Any:
    pipe = tiny_pipelines.build(name)
    for part in components(pipe).values():
        part.eval()  # as `from_pretrained` leaves them
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, *, steps: int = STEPS, **extra: Any) -> bytes:
    settings: dict[str, Any] = {"generator": torch.Generator().manual_seed(3), "num_inference_steps": steps}
    if "vae" in pipe.components:
        settings |= {"prompt": "a photo of the cat", "height": 64, "width": 64}
    return bytes(pipe(**settings, **extra).images[0].tobytes())


def hooks(pipe: Any) -> list[Any]:
    modules = [getattr(pipe, name, None) for name in DENOISERS]
    return [hook for m in modules if m is not None for hook in m._forward_pre_hooks.values()]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_step_is_reported_and_the_picture_is_the_same(name: str) -> None:
    pipe = built(name)
    assert takes_callback(pipe) is (name not in WITHOUT_CALLBACK)
    alone = draw(pipe)
    heard = Heard()
    with watched(pipe, heard, total=STEPS) as extra:
        assert draw(pipe, **extra) == alone
    assert sorted(set(heard.told)) == [(step, STEPS) for step in range(STEPS + 1)]
    assert heard.told == sorted(heard.told)
    assert all(picture is not None for picture in heard.pictures)
    assert len(heard.pictures) == STEPS
    assert not hooks(pipe)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_report_that_raises_ends_it_within_a_step_and_the_pipeline_draws_as_before(name: str) -> None:
    pipe = built(name)
    alone = draw(pipe)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    counting = denoiser.register_forward_hook(count)
    with pytest.raises(RequestCancelled), watched(pipe, Heard(cancel_at=1), total=10) as extra:
        draw(pipe, steps=10, **extra)
    assert calls == 1
    counting.remove()
    assert not hooks(pipe)
    assert draw(pipe) == alone


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_scheduler_tells_how_many_steps_there_are(name: str) -> None:
    heard = Heard()
    pipe = built(name)
    with watched(pipe, heard) as extra:
        draw(pipe, **extra)
    assert heard.told[0] == (0, 0)
    assert heard.told[-1] == (STEPS, STEPS)


def test_who_is_cancelled_before_the_first_step_does_not_begin() -> None:
    pipe = built("ddpm")
    with pytest.raises(RequestCancelled), watched(pipe, Heard(cancel_at=0)):
        pytest.fail("it began")
    assert not hooks(pipe)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("name", ["sd15", "pixart"])
def test_a_solver_that_asks_twice_for_a_step_makes_no_more_steps_of_it(name: str, steps: int) -> None:
    pipe = built(name)
    pipe.scheduler = diffusers.HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    heard = Heard()
    with watched(pipe, heard, total=steps) as extra:
        draw(pipe, steps=steps, **extra)
    done = [step for step, _ in heard.told]
    assert all(before <= after <= before + 1 for before, after in pairwise(done))
    assert done[-1] == steps
    assert {total for _, total in heard.told} == {steps}


@pytest.mark.parametrize("name", ["sd15", "pixart"])
def test_a_second_drawing_in_the_same_block_takes_no_step_back(name: str) -> None:
    pipe, heard = built(name), Heard()
    with watched(pipe, heard, total=STEPS) as extra:
        draw(pipe, **extra)
        draw(pipe, **extra)
    done = [step for step, _ in heard.told]
    assert done == sorted(done)
    assert done[-1] == STEPS


class Twice(diffusers.DDPMPipeline):  # type: ignore[misc]  # it is untyped
    """Guides without a batch: two calls for each step."""

    def __call__(self, num_inference_steps: int) -> None:
        image = torch.zeros(1, 3, 16, 16)
        self.scheduler.set_timesteps(num_inference_steps)
        for timestep in self.scheduler.timesteps:
            noise = self.unet(image, timestep).sample + self.unet(image, timestep=timestep).sample
            image = self.scheduler.step(noise, timestep, image).prev_sample


def twice() -> Any:
    pipe = built("ddpm")
    pipe = Twice(unet=pipe.unet, scheduler=pipe.scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_two_calls_at_one_timestep_are_one_step() -> None:
    pipe, heard = twice(), Heard()
    with watched(pipe, heard, total=4) as extra, torch.no_grad():
        pipe(4, **extra)
    assert [step for step, _ in heard.told] == [0, 0, 0, 1, 1, 2, 2, 3, 3, 4]


def test_the_calls_of_another_thread_are_not_counted() -> None:
    pipe, heard = twice(), Heard()
    with watched(pipe, heard, total=4), torch.no_grad():
        other = threading.Thread(target=pipe, args=(4,))
        other.start()
        other.join()
        assert heard.told == [(0, 4)]


def test_a_callback_of_the_author_s_own_is_called_too_and_may_change_the_latents() -> None:
    pipe = built("sd15")
    seen = []

    def blank(_pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(step)
        return {"latents": torch.zeros_like(tensors["latents"])}

    heard = Heard()
    with watched(pipe, heard, total=STEPS, callback=blank) as extra:
        assert draw(pipe, **extra) != draw(pipe)
    assert seen == [0, 1, 2]
    assert heard.told[-1] == (STEPS, STEPS)


def test_a_callback_that_forgets_to_return_the_tensors_is_forgiven() -> None:
    pipe = built("sd15")
    with watched(pipe, Heard(), callback=lambda *_: None) as extra:
        assert draw(pipe, **extra) == draw(pipe)


def test_a_callback_for_a_pipeline_that_takes_none_is_refused() -> None:
    with (
        pytest.raises(TypeError, match="DDPMPipeline takes no callback_on_step_end"),
        watched(built("ddpm"), Heard(), callback=lambda *_: None),
    ):
        pytest.fail("it began")


def test_a_pipeline_whose_steps_nobody_knows_is_cancelled_all_the_same() -> None:
    pipe = twice()
    pipe.scheduler.timesteps = None
    heard = Heard()
    with watched(pipe, heard), torch.no_grad():
        for timestep in (3, 2, 1):
            pipe.unet(torch.zeros(1, 3, 16, 16), timestep)
    assert set(heard.told) == {(0, 0)}
    with watched(pipe, heard), torch.no_grad():
        heard.cancel_at = 0
        with pytest.raises(RequestCancelled):
            pipe.unet(torch.zeros(1, 3, 16, 16), 1)
        heard.cancel_at = None
