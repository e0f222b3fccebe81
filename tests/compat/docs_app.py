"""
The example of fal's page "Optimizing Routing Behavior", with its import changed to falctl.

Besides: the `Field` import that the page forgets, the device from the environment, and types where mypy asks.
"""

import os
from typing import Any

from pydantic import BaseModel, Field

import falctl as fal
from falctl.toolkit import Image


class Input(BaseModel):
    model: str = Field()
    prompt: str = Field()


class Output(BaseModel):
    image: Image = Field()


class AnyModelRunner(fal.App):
    def setup(self) -> None:
        self.models = {}  # type: ignore[var-annotated]

    def provide_hints(self) -> list[str]:
        # Choose to specialize on already loaded models; at first this will be empty
        # so we'll be picked for any request, but as slowly the cache builds up, the
        # replica will be more preferable compared to others.
        return self.models.keys()  # type: ignore[return-value]

    def load_model(self, name: str) -> Any:
        from diffusers import DiffusionPipeline

        if name in self.models:
            return self.models[name]

        pipeline = DiffusionPipeline.from_pretrained(name)
        pipeline.to(os.environ.get("DOCS_APP_DEVICE", "cpu"))

        self.models[name] = pipeline
        return pipeline

    @fal.endpoint("/")
    def run_model(self, input: Input) -> Output:  # noqa: A002
        model = self.load_model(input.model)
        result = model(input.prompt)
        return Output(image=Image.from_pil(result.images[0]))
