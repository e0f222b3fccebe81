"""AnyModelRunner: draws with any diffusers text-to-image pipeline, and keeps the last few in memory."""

from __future__ import annotations

import base64
import gc
import inspect
import os
import secrets
import time
from collections.abc import Iterable
from typing import Any, Final, Literal

from pydantic import BaseModel, Field

from falctl import App, endpoint
from falctl.toolkit import Image, RequestError, encode_image
from runners.model_names import Source, UnusableModelError, find_model

_SEEDS: Final = 1 << 32


class Prompt(BaseModel):
    """What to draw, and how."""

    model: str = Field(
        min_length=1,
        max_length=256,
        description="a demo model, a folder of models.paths, a Hub id of models.allow",
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
    """Holds `cache.max_models` pipelines and frees the least recently used."""

    def setup(self) -> None:
        # Read when diffusers is imported: no pipeline of a folder or the Hub may bring code of its own.
        os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] = "1"
        import diffusers
        import torch
        import transformers

        self.pipelines = (
            diffusers.DiffusionPipeline
        )  # imports most of diffusers, seconds that no request should pay
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()  # it asks for torchvision, which nothing here needs
        self.dtype = getattr(torch, _dtype_name(self.runner.models_dtype, device=self.runner.device))
        self.models = self.runner.model_cache(load=self._load, unload=unload, check=self._find)
        # Nothing imported so far is ever dropped. Left out of it, a collection takes 1 ms instead of 340
        # (measured: a demo model loaded, 2-core Xeon), and each eviction needs one.
        gc.collect()
        gc.freeze()

    def provide_hints(self) -> Iterable[str]:
        return self.models.resident

    @endpoint("/")
    def draw(self, request: Prompt) -> Drawing:
        seed = secrets.randbelow(_SEEDS) if request.seed is None else request.seed
        asked_at = time.perf_counter()
        with self.models.lease(request.model) as pipeline:
            loaded_at = time.perf_counter()
            images = self._run(pipeline, request, seed=seed)
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

    def _find(self, name: str) -> Source:
        return find_model(name, paths=self.runner.models_paths, allow=self.runner.models_allow)

    def _load(self, name: str) -> Any:
        source = self._find(name)
        try:
            pipeline = self.pipelines.from_pretrained(
                source.place,
                dtype=self.dtype,
                use_safetensors=True,
                local_files_only=source.local,
                trust_remote_code=False,
            )
            pipeline.to(self.runner.device)
        except MemoryError:
            raise
        except Exception as error:
            # Half a folder makes diffusers, safetensors, json and torch each raise their own kinds.
            if type(error).__name__ == "OutOfMemoryError":
                raise
            first_line = (str(error).splitlines() or [""])[0]
            msg = f"Model {name!r} cannot be loaded: {type(error).__name__}: {first_line}"
            raise UnusableModelError(msg) from error
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def unload(pipeline: Any) -> None:
    """Free the weights of *pipeline*, and the card's memory that they took."""
    for name in pipeline.components:
        setattr(pipeline, name, None)  # whoever still holds the pipeline no longer holds its weights
    gc.collect()
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _dtype_name(configured: str, *, device: str) -> str:
    if configured != "auto":
        return configured
    if device == "cpu":
        return "float32"
    import torch

    return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"


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
