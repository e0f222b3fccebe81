"""Small apps for what the ready-made ones do not do: store an image, crash after a while."""

from __future__ import annotations

import os
import threading
from pathlib import Path

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
    """
    The runners that the environment lists exit a moment after the file is there that it names.

    If it says that they do so once, the first that does takes the file away, and nobody follows.
    """

    def setup(self) -> None:
        doomed = os.environ["FALCTL_TEST_DOOMED"].split(",")
        if str(self.runner.runner) in doomed:
            threading.Thread(target=_exit_when_told, daemon=True).start()

    @endpoint("/")
    def run(self) -> int:
        return self.runner.runner


def _exit_when_told() -> None:
    # Not before the whole fleet is up: a runner that ends before is a failed start.
    doom, pause = Path(os.environ["FALCTL_TEST_DOOM"]), threading.Event()
    while not doom.exists():
        pause.wait(0.02)
    if os.environ["FALCTL_TEST_ONCE"] == "1":
        doom.unlink()
    pause.wait(0.3)
    os._exit(9)
