"""An app that notices when one runner works on two requests at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import BaseModel

from falctl import App, endpoint


class Pause(BaseModel):
    """How long a request takes."""

    seconds: float


class Alone(App):
    """Two kinds of work that nothing can interrupt, and the number of times that any of it met another."""

    def setup(self) -> None:
        self._lock = threading.Lock()
        self.met = self.done = 0

    @endpoint("/sync")
    def sync(self, pause: Pause) -> dict[str, int]:
        with self._alone():
            threading.Event().wait(pause.seconds)
        return self._counts()

    @endpoint("/stubborn")
    async def stubborn(self, pause: Pause) -> dict[str, int]:
        """Go on to the end although the host cancels us when the client is gone."""
        with self._alone():
            work = asyncio.ensure_future(asyncio.sleep(pause.seconds))
            while not work.done():
                try:
                    await asyncio.shield(work)
                except asyncio.CancelledError:
                    continue
        return self._counts()

    @endpoint("/counts")
    async def counts(self) -> dict[str, int]:
        return self._counts()

    def _counts(self) -> dict[str, int]:
        return {"met": self.met, "done": self.done}

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            self.met += 1
            msg = "two requests at a time"
            raise RuntimeError(msg)
        try:
            yield
        finally:
            self.done += 1
            self._lock.release()
