"""An app whose requests take steps, and can show how far they are."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image as Pil
from pydantic import BaseModel

from falctl import App, endpoint


class Work(BaseModel):
    """Steps until the file ``open`` is in *folder*; each could show a picture of this kind."""

    folder: Path
    picture: Literal["plain", "noise", "none", "broken"] = "plain"
    side: int = 64


class Stepping(App):
    def setup(self) -> None:
        self.made = 0

    @endpoint("/")
    def work(self, work: Work) -> dict[str, int]:
        self.made = step = 0
        while not (work.folder / "open").exists():
            step += 1
            self.runner.progress(step, 1_000_000, lambda: self._picture(work))
            threading.Event().wait(0.002)
        self.runner.progress(1_000_000, 1_000_000)
        return {"made": self.made}

    @endpoint("/asks")
    def asks(self, work: Work) -> str:
        """Look at whether it is cancelled, and end by itself."""
        self.runner.progress(0, 5)
        while not self.runner.cancelled:
            threading.Event().wait(0.002)
        return "ended"

    def _picture(self, work: Work) -> Pil.Image | None:
        self.made += 1
        match work.picture:
            case "none":
                return None
            case "broken":
                raise ValueError("no picture")
            case "noise":
                noise = np.random.default_rng(1).integers(0, 256, (work.side, work.side, 4), dtype=np.uint8)
                return Pil.fromarray(noise)
            case _:
                return Pil.new("L", (work.side, work.side // 2), 128)


class Loading(App):
    """Its models are folders: one is loaded once it holds the file ``open``."""

    max_multiplexing = 2

    def setup(self) -> None:
        self.models = self.runner.model_cache(load=self._load)

    @endpoint("/")
    def lease(self, body: dict[str, str]) -> str:
        with self.models.lease(body["model"]) as model:
            return model

    def _load(self, name: str) -> str:
        while not (Path(name) / "open").exists():
            threading.Event().wait(0.002)
        return name
