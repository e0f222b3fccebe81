"""An app that holds one block of the host memory that runners share, and tells whether it had to fill it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from falctl import App, endpoint


class Wanted(BaseModel):
    key: str
    nbytes: int
    value: int = 0
    hold: bool = True


class Holds(App):
    """Its hint is the number of its runner, so that a request can name one."""

    def setup(self) -> None:
        self.memory: Any = self.runner.host_memory  # type: ignore[attr-defined]  # not for authors
        self.blocks: list[Any] = []

    def provide_hints(self) -> Iterable[str]:
        return [f"runner-{self.runner.runner}"]

    @endpoint("/")
    def obtain(self, wanted: Wanted) -> dict[str, int | bool]:
        block = self.memory.obtain(wanted.key, wanted.nbytes)
        filled = block.filled
        if not filled:
            block.flat.fill_(wanted.value)
            block.seal()
        total = int(block.flat.sum())
        if wanted.hold:
            self.blocks.append(block)
        else:
            block.release()
        return {"runner": self.runner.runner, "filled": filled, "sum": total}

    @endpoint("/scribble")
    def scribble(self) -> None:
        """Write into weights that others have, too."""
        self.blocks[-1].flat[0] = 99
