"""The smallest app with every kind of answer: for tests and benchmarks of everything around it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import StreamingResponse

from falctl import App, endpoint


class Chunks(BaseModel):
    """How to stream."""

    n: int = Field(3, ge=0, le=1_000_000)
    pause_s: float = Field(0.0, ge=0, le=3600)


class Pause(BaseModel):
    """How long to take."""

    seconds: float = Field(0.0, ge=0, le=86400)


class Echo(App):
    """Gives back what it gets."""

    @endpoint("/")
    def echo(self, body: dict[str, Any]) -> dict[str, Any]:
        return body

    @endpoint("/stream")
    async def stream(self, chunks: Chunks) -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            for i in range(chunks.n):
                yield f'data: {{"n": {i}}}\n\n'
                await asyncio.sleep(chunks.pause_s)

        return StreamingResponse(events(), media_type="text/event-stream")

    @endpoint("/sleep")
    def sleep(self, pause: Pause) -> dict[str, float]:
        threading.Event().wait(pause.seconds)
        return {"slept_s": pause.seconds}

    @endpoint("/asleep")
    async def asleep(self, pause: Pause) -> dict[str, float]:
        await asyncio.sleep(pause.seconds)
        return {"slept_s": pause.seconds}

    @endpoint("/pid")
    def pid(self) -> dict[str, int]:
        return {"pid": os.getpid(), "runner": self.runner.runner}

    @endpoint("/crash")
    def crash(self) -> None:
        os._exit(7)
