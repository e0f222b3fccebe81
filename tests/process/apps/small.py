"""Small apps for what the ready-made ones do not do: store an image, crash after a while."""

from __future__ import annotations

import os
import threading

from PIL import Image as Pil
from pydantic import BaseModel

from falctl import App, endpoint
from falctl.toolkit import Image


class Colour(BaseModel):
    """What to paint."""

    rgb: tuple[int, int, int]


class Painter(App):
    """Stores an image of one colour."""

    @endpoint("/")
    def paint(self, colour: Colour) -> Image:
        return Image.from_pil(Pil.new("RGB", (8, 8), colour.rgb))

    @endpoint("/pid")
    def pid(self) -> int:
        return os.getpid()


class CrashesSoon(App):
    """The runners that the environment lists exit a moment after they are ready."""

    def setup(self) -> None:
        doomed = os.environ["FALCTL_TEST_DOOMED"].split(",")
        if str(self.runner.runner) in doomed:
            threading.Timer(0.3, os._exit, (9,)).start()

    @endpoint("/")
    def run(self) -> int:
        return self.runner.runner
