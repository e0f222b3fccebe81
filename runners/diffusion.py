"""AnyModelRunner: draws with any diffusers text-to-image pipeline, and keeps in memory what has room."""

from __future__ import annotations

import base64
import inspect
import secrets
import time
from collections.abc import Iterable
from typing import Any, Final, Literal

from pydantic import BaseModel, Field

from falctl import App, endpoint
from falctl.toolkit import Drawing as DrawingSize
from falctl.toolkit import Image, RequestError, encode_image, lora_adapter, name_with_loras
from runners.model_names import Source, find_model

_SEEDS: Final = 1 << 32
_JOINT: Final = "+"


class Lora(BaseModel):
    """What the model is to be drawn with."""

    path: str = Field(
        max_length=128,
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$",
        description="a safetensors file in a folder of models.paths, with or without its ending",
    )
    scale: float = Field(1.0, ge=-10, le=10)


class Prompt(BaseModel):
    """What to draw, and how."""

    model: str = Field(
        min_length=1,
        max_length=256,
        description="a demo model, a folder of models.paths, a Hub id of models.allow",
    )
    loras: list[Lora] = Field(
        default=[], max_length=8, description="added to the model; the hint for both is MODEL+LORA"
    )
    prompt: str = Field(max_length=10_000)
    negative_prompt: str = Field("", max_length=10_000)
    num_inference_steps: int = Field(20, ge=1, le=500)
    guidance_scale: float | None = Field(
        None, ge=0, le=50, description="left out: the pipeline's own default"
    )
    width: int | None = Field(None, ge=16, le=4096, multiple_of=8, description="pixels; left out: as trained")
    height: int | None = Field(
        None, ge=16, le=4096, multiple_of=8, description="pixels; left out: as trained"
    )
    num_images: int = Field(1, ge=1, le=16)
    seed: int | None = Field(
        None, ge=0, le=(1 << 63) - 1, description="left out: a random one, which is returned"
    )
    keep_alive: str | float | None = Field(
        None,
        description='how long the model may idle: "10m", seconds, 0, or -1, for ever; left out: cache.keep_alive',
    )
    output_format: Literal["png", "jpeg", "webp"] = "png"
    sync_mode: bool = Field(False, description="answer with data: URIs instead of links")  # noqa: FBT003


class Picture(BaseModel):
    """One image."""

    url: str
    content_type: str
    width: int
    height: int


class Drawing(BaseModel):
    """The answer to a `Prompt`."""

    images: list[Picture]
    seed: int
    model: str
    timings: dict[str, float] = Field(description="seconds: load, inference")


class RefusedByPipelineError(RequestError):
    """The pipeline does not take these inputs."""

    status, error_type = 422, "bad_request"


class AnyModelRunner(App):
    """Holds the pipelines that have room, and lets those leave that are cheapest to bring back."""

    def setup(self) -> None:
        self.models = self.runner.pipeline_cache(self._find, joint=_JOINT)

    def provide_hints(self) -> Iterable[str]:
        return self.models.resident

    @endpoint("/")
    def draw(self, request: Prompt) -> Drawing:
        seed = secrets.randbelow(_SEEDS) if request.seed is None else request.seed
        if request.keep_alive is not None:
            self.runner.keep_alive(request.keep_alive)
        name = name_with_loras(request.model, (lora.path for lora in request.loras), joint=_JOINT)
        asked_at = time.perf_counter()
        loaded_at = asked_at

        def run(pipeline: Any) -> list[Any]:
            nonlocal loaded_at
            loaded_at = time.perf_counter()
            self._scale_loras(pipeline, name, request)
            return self._run(pipeline, request, seed=seed)

        images = self.models.run(name, run, drawing_size(request))
        timings = {"load": loaded_at - asked_at, "inference": time.perf_counter() - loaded_at}
        pictures = [_picture(image, request) for image in images]
        return Drawing(images=pictures, seed=seed, model=request.model, timings=timings)

    def _run(self, pipeline: Any, request: Prompt, *, seed: int) -> list[Any]:
        import torch

        # On the CPU, so that a seed draws the same picture on every card; one for each, so that the first of
        # four is the picture that the seed alone would draw.
        generators = [torch.Generator("cpu").manual_seed(seed + i) for i in range(request.num_images)]
        inputs = {
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt or None,
            "num_inference_steps": request.num_inference_steps,
            "guidance_scale": request.guidance_scale,
            "width": request.width,
            "height": request.height,
            "num_images_per_prompt": request.num_images,
            "generator": generators if request.num_images > 1 else generators[0],
        }
        size = (request.width, request.height) if request.width and request.height else None
        try:
            with self.runner.steps(pipeline, total=request.num_inference_steps, size=size) as watched:
                return list(pipeline(**_accepted(pipeline, inputs), **watched).images)
        except (TypeError, ValueError) as error:
            # Also what a pipeline says that does not draw from text alone.
            msg = f"Model {request.model!r} refuses these inputs: {error}"
            raise RefusedByPipelineError(msg) from error

    def _scale_loras(self, pipeline: Any, name: str, request: Prompt) -> None:
        count = len(self._find(name).loras)
        if count:
            # Those that the model's own name has come first; the cache calls each by its place.
            scales = [1.0] * (count - len(request.loras)) + [lora.scale for lora in request.loras]
            pipeline.set_adapters([lora_adapter(i) for i in range(count)], scales)

    def _find(self, name: str) -> Source:
        return find_model(name, paths=self.runner.models_paths, allow=self.runner.models_allow)


def drawing_size(request: Prompt) -> DrawingSize:
    """Return what memory is needed for; a side that is left out is the one that the model usually draws."""
    return DrawingSize(request.width or 0, request.height or 0, request.num_images)


def _accepted(pipeline: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return those of *inputs* that are given and that the pipeline takes."""
    parameters = inspect.signature(type(pipeline).__call__).parameters
    if "num_images_per_prompt" not in parameters and "batch_size" in parameters:
        inputs = {**inputs, "batch_size": inputs["num_images_per_prompt"]}
    return {name: value for name, value in inputs.items() if value is not None and name in parameters}


def _picture(image: Any, request: Prompt) -> Picture:
    size = {"width": image.width, "height": image.height}
    if not request.sync_mode:
        stored = Image.from_pil(image, request.output_format)
        return Picture(url=stored.url, content_type=stored.content_type or "", **size)
    data, content_type = encode_image(image, request.output_format)
    url = f"data:{content_type};base64,{base64.b64encode(data).decode('ascii')}"
    return Picture(url=url, content_type=content_type, **size)
