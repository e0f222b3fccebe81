"""A real fal.App for fal's clients to call: every kind of answer, quickly, without a model."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import fal
from fal.exceptions import AppException
from fal.toolkit import download_file
from fastapi import Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field


class Ask(BaseModel):
    prompt: str = Field()
    model: str = ""
    count: int = Field(3, ge=0, le=1000)
    touch: str = Field("", description="a file to make when the request has begun")
    until: str = Field("", description="a file: the answer is given when it is there")
    fail_unless: str = Field("", description="a file: status 503 and its making, unless it is there")
    status: int = 200
    image: str = ""


def there(file: str) -> bool:
    return Path(file).exists()


def touch(file: str) -> None:
    Path(file).touch()


async def appears(file: str) -> None:
    while not there(file):  # noqa: ASYNC110 - a file tells nobody that it is there
        await asyncio.sleep(0.02)


class ClientApp(fal.App, name="client-app", keep_alive=300):
    def setup(self) -> None:
        self.models: dict[str, int] = {}

    def provide_hints(self) -> list[str]:
        return list(self.models)

    @fal.endpoint("/")
    async def run(self, ask: Ask, request: Request) -> dict[str, object]:
        print(f"begins {ask.prompt}")
        if ask.model:
            self.models[ask.model] = 1
        if ask.touch:
            touch(ask.touch)
        if ask.fail_unless and not there(ask.fail_unless):
            touch(ask.fail_unless)
            raise AppException("not this time", 503)
        if ask.status != 200:
            raise AppException("as it was asked for", ask.status)
        if ask.until:
            await appears(ask.until)
        print(f"ends {ask.prompt}")
        return {
            "prompt": ask.prompt,
            "hint": request.headers.get("x-fal-runner-hint"),
            "request_id": request.headers.get("x-fal-request-id"),
            "runner": os.getpid(),
            "image": ask.image,
        }

    @fal.endpoint("/sub/path")
    def sub(self, ask: Ask) -> dict[str, str]:
        return {"sub": ask.prompt, "thread": threading.current_thread().name}

    @fal.endpoint("/calls-another")
    def calls_another(self, ask: Ask) -> dict[str, object]:
        import fal_client

        answers = [
            call("me/client-app/sub/path", {"prompt": ask.prompt})
            for call in (fal_client.run, fal_client.subscribe)
        ]
        return {"answers": [answer["sub"] for answer in answers], "key": os.environ.get("FAL_KEY")}

    @fal.endpoint("/size")
    def size(self, ask: Ask) -> dict[str, int]:
        with TemporaryDirectory() as folder:
            return {"bytes": download_file(ask.image, folder).stat().st_size}

    @fal.endpoint("/stream")
    def stream(self, ask: Ask) -> StreamingResponse:
        def events() -> Iterator[str]:
            for i in range(ask.count):
                yield f'data: {{"i": {i}, "prompt": "{ask.prompt}"}}\n\n'

        return StreamingResponse(events(), media_type="text/event-stream")

    @fal.endpoint("/slow-stream")
    def slow_stream(self, ask: Ask) -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            yield 'data: {"i": 0}\n\n'
            await appears(ask.until)
            yield 'data: {"i": 1}\n\n'

        return StreamingResponse(events(), media_type="text/event-stream")
