"""Leases models, and runs out of memory while it uses one."""

from __future__ import annotations

import os

from pydantic import BaseModel

from falctl import App, endpoint


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


class Wanted(BaseModel):
    model: str
    greedy: bool = False


class Greedy(App):
    def setup(self) -> None:
        self.models = self.runner.model_cache(load=str)

    def provide_hints(self) -> tuple[str, ...]:
        return self.models.resident

    @endpoint("/lease")
    def lease(self, request: Wanted) -> int:
        with self.models.lease(request.model):
            if request.greedy:
                raise OutOfMemoryError(
                    "CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation"
                )
            return os.getpid()

    @endpoint("/alone")
    def alone(self) -> None:
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
