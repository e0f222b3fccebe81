"""Where a model is: what an app tells the cache that loads pipelines for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from falctl.core.sources import join


class ModelSource(Protocol):
    """Where a model is loaded from."""

    @property
    def place(self) -> str:
        """Return a folder's path, or a Hub id."""
        ...

    @property
    def local(self) -> bool:
        """Return whether it is a folder."""
        ...

    @property
    def loras(self) -> tuple[str, ...]:
        """Return the paths of safetensors files that it is to be drawn with; the i-th is the adapter `lora_adapter(i)`."""
        ...


def lora_adapter(i: int) -> str:
    """Return how a pipeline calls the i-th of `ModelSource.loras`, for ``set_adapters``."""
    return f"lora{i}"


def name_with_loras(model: str, loras: Iterable[str], *, joint: str) -> str:
    """
    Return what *model* with *loras* laid upon it is called: names of files, whose ending does not count.

    The router calls it so, too, where a request's body has ``loras: [{"path": ...}]`` beside its model, so that it finds
    who holds both: an app with such requests must use this, with what it gives as *joint* to `pipeline_cache`.
    """
    return join(model, loras, joint)
