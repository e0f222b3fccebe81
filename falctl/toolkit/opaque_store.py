"""
Models that an app makes itself, by name: what is in one, and how many bytes it has, only the app knows.

Each is one part. It is loaded straight to where it runs, and evicting it lets go of all of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from falctl.core.activations import Drawing
from falctl.core.fit import How
from falctl.core.residency import Part

M = TypeVar("M")


class OpaqueStore(Generic[M]):
    """A `ModelStore` that calls the app. Without *load* it only holds what it is given by `put`."""

    free_bytes: None = None
    total_bytes: None = None
    drawn_bytes = 0

    def __init__(
        self,
        load: Callable[[str], M] | None = None,
        *,
        unload: Callable[[M], None] | None = None,
        check: Callable[[str], object] | None = None,
    ) -> None:
        self._load = load
        self._unload = unload
        self._check = check
        self._models: dict[str, M] = {}

    @property
    def loads(self) -> bool:
        """Return whether it can make a model that it was not given."""
        return self._load is not None

    def put(self, name: str, model: M) -> None:
        """Hold *model* as *name*, in place of the one that has that name."""
        self._models[name] = model

    def check(self, name: str) -> None:
        if self._check is not None:
            self._check(name)

    def needs(self, name: str) -> tuple[Part, ...]:
        return (Part(name, 0, "vram", host=False),) if name in self._models else ()

    def peak_bytes(self, name: str, drawing: Drawing | None) -> int:
        return 0

    def parts(self) -> Mapping[str, Part]:
        return {name: Part(name, 0, "vram", host=False) for name in tuple(self._models)}

    def module_bytes(self, name: str) -> int:
        return 0

    def is_constructed(self, name: str) -> bool:
        return name in self._models

    def moved(self) -> Mapping[str, int]:
        return {}

    def construct(self, name: str, cancelled: threading.Event | None = None) -> None:
        """Call the app's ``load``, which nothing can stop. Raises what it raises, and KeyError if there is none."""
        if self._load is None:
            raise KeyError(name)
        self._models[name] = self._load(name)

    def fill(self, name: str, cancelled: threading.Event) -> None:
        """Do nothing: host memory is the app's own business."""

    def place(
        self,
        name: str,
        how: How = "whole",
        *,
        filling: bool = False,
        cancelled: threading.Event | None = None,
    ) -> M:
        return self._models[name]

    def evict(self, key: str) -> None:
        """Let go of the model *key* and call the app's ``unload``. Raises what that raises."""
        model = self._models.pop(key)
        if self._unload is not None:
            self._unload(model)

    def drop(self, key: str) -> None:
        """Do nothing, as `fill` does."""

    def forget(self, name: str) -> None:
        if name in self._models:
            self.evict(name)
