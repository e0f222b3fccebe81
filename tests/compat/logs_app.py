"""A real fal.App that prints while it serves."""

import logging
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import fal
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from tqdm import tqdm

from tests.wait import until

log = logging.getLogger("logs-app")


class Ask(BaseModel):
    name: str = ""
    until: str = ""


class LogsApp(fal.App, name="logs-app", keep_alive=300):
    max_multiplexing = 2

    def setup(self) -> None:
        print("setup is nobody's")

    @fal.endpoint("/")
    def run(self, ask: Ask) -> str:
        print("first of", ask.name)
        if ask.until:
            until(Path(ask.until).exists, within_s=60.0, what="the test goes on")
        for _ in tqdm(range(50), desc="steps", file=sys.stderr):
            pass
        log.warning("a warning of %s", ask.name)
        print("last of", ask.name)
        return ask.name

    @fal.endpoint("/fail")
    def fail(self) -> str:
        print("before it fails")
        raise ValueError("an own bug")

    @fal.endpoint("/stream")
    async def stream(self) -> StreamingResponse:
        async def chunks() -> AsyncIterator[str]:
            for n in range(3):
                print("chunk", n)
                yield f'data: {{"n": {n}}}\n\n'

        return StreamingResponse(chunks(), media_type="text/event-stream")
