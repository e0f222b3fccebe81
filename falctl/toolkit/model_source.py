"""Where a model is: what an app tells the cache that loads pipelines for it."""

from __future__ import annotations

from typing import Protocol


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
