"""Apps that do on request whatever a host must cope with."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

from fastapi import HTTPException, Request
from pydantic import BaseModel
from starlette.background import BackgroundTask
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse

from falctl import App, endpoint
from falctl.toolkit import File, RequestError

warnings.simplefilter("error")


class Gate(BaseModel):
    """A folder: the endpoint writes `entered` there, and goes on when `open` is there."""

    folder: Path

    def enter(self) -> None:
        (self.folder / "entered").write_text(threading.current_thread().name)

    def is_open(self) -> bool:
        return (self.folder / "open").exists()

    def hold(self) -> None:
        while not self.is_open():
            threading.Event().wait(0.005)

    async def hold_async(self) -> None:
        while not self.is_open():  # noqa: ASYNC110 - it is a file that opens
            await asyncio.sleep(0.005)


class Hints(BaseModel):
    hints: list[Any] | str | int | None
    fail: bool = False


class TeapotError(RequestError):
    status, error_type = 418, "teapot"


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


class AcceleratorError(RuntimeError):
    """Named as torch's."""


class Output(BaseModel):
    n: int


class Probe(App):
    def setup(self) -> None:
        self.hints: Any = []
        self.fail = False
        self.hint_threads: set[str] = set()

    def teardown(self) -> None:
        if "TEARDOWN" in os.environ:
            Path(os.environ["TEARDOWN"]).write_text(threading.current_thread().name)

    def provide_hints(self) -> Iterable[str]:
        self.hint_threads.add(threading.current_thread().name)
        if self.fail:
            raise LookupError("no hints today")
        result: Iterable[str] = self.hints
        return result

    @endpoint("/hints")
    def set_hints(self, given: Hints) -> str:
        self.hints, self.fail = given.hints, given.fail
        return "set"

    @endpoint("/threads")
    def threads(self) -> dict[str, Any]:
        return {"here": threading.current_thread().name, "hints": sorted(self.hint_threads)}

    @endpoint("/wrapped-async")
    def wrapped_async(self) -> Any:
        async def result() -> str:
            return threading.current_thread().name

        return result()

    @endpoint("/headers")
    async def headers(self, request: Request) -> list[tuple[str, str]]:
        return [(k.decode("latin-1"), v.decode("latin-1")) for k, v in request.headers.raw]

    @endpoint("/length")
    async def length(self, request: Request) -> int:
        return len(await request.body())

    @endpoint("/boom")
    def boom(self) -> None:
        raise ValueError("the secret is 42")

    @endpoint("/aboom")
    async def aboom(self) -> None:
        raise ValueError("the secret is 42")

    @endpoint("/wrong-output")
    def wrong_output(self) -> Output:
        return {"n": "not a number"}  # type: ignore[return-value]

    @endpoint("/refuse")
    def refuse(self) -> None:
        raise TeapotError("short and stout", retry_after_s=3)

    @endpoint("/http-error")
    def http_error(self) -> None:
        raise HTTPException(409, {"taken": True})

    @endpoint("/oom")
    def oom(self) -> None:
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    @endpoint("/cublas")
    def cublas(self) -> None:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)")

    @endpoint("/break-card")
    def break_card(self) -> None:
        raise AcceleratorError("CUDA error: an illegal memory access was encountered")

    @endpoint("/exit")
    def exit(self) -> None:
        sys.exit("bye")

    @endpoint("/aexit")
    async def aexit(self) -> None:
        sys.exit("bye")

    @endpoint("/stop-iteration")
    def stop_iteration(self) -> None:
        next(iter(()))

    @endpoint("/model")
    def model(self) -> Output:
        return Output(n=1)

    @endpoint("/text")
    def text(self) -> Response:
        return PlainTextResponse("plain", headers={"x-own": "1"})

    @endpoint("/any-answer")
    def any_answer(self, status: int, headers: dict[str, str]) -> Response:
        response = Response(b"body", status)
        response.raw_headers += [(k.encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()]
        return response

    @endpoint("/unsendable-stream")
    def unsendable_stream(self) -> StreamingResponse:
        return StreamingResponse(iter(["never"]), 600)

    @endpoint("/nothing")
    def nothing(self) -> Response:
        return Response(status_code=204)

    @endpoint("/file")
    def file(self) -> FileResponse:
        return FileResponse(__file__)

    @endpoint("/store")
    def store(self) -> File:
        return File.from_bytes(b"stored", "text/plain")

    @endpoint("/background")
    def background(self) -> Response:
        return PlainTextResponse("first", background=BackgroundTask(self.hints.append, "after"))

    @endpoint("/held")
    def held(self, gate: Gate) -> str:
        gate.enter()
        gate.hold()
        return "held"

    @endpoint("/steps")
    def steps(self, gate: Gate) -> str:
        gate.enter()
        done = 0
        while not gate.is_open():
            done += 1
            self.runner.progress(done, 1_000_000)
            threading.Event().wait(0.002)
        return "all steps"

    @endpoint("/aheld")
    async def aheld(self, gate: Gate) -> str:
        gate.enter()
        try:
            await gate.hold_async()
        except asyncio.CancelledError:
            (gate.folder / "cancelled").touch()
            raise
        return "held"

    @endpoint("/sync-stream")
    def sync_stream(self, gate: Gate) -> StreamingResponse:
        def chunks() -> Iterator[str]:
            try:
                yield threading.current_thread().name + "\n"
                gate.enter()
                gate.hold()
                yield "end\n"
            finally:
                (gate.folder / "closed").touch()

        return StreamingResponse(chunks(), media_type="text/plain")

    @endpoint("/held-then-stream")
    def held_then_stream(self, gate: Gate) -> StreamingResponse:
        gate.enter()
        gate.hold()

        def chunks() -> Iterator[str]:
            for _ in range(1_000_000_000):
                yield "more\n"

        return StreamingResponse(chunks(), media_type="text/plain")

    @endpoint("/endless")
    async def endless(self, gate: Gate) -> StreamingResponse:
        async def chunks() -> AsyncIterator[str]:
            gate.enter()
            try:
                while True:
                    yield "more\n"
                    await asyncio.sleep(0.01)
            finally:
                (gate.folder / "closed").touch()

        return StreamingResponse(chunks(), media_type="text/plain")

    @endpoint("/broken-stream")
    def broken_stream(self) -> StreamingResponse:
        def chunks() -> Iterator[str]:
            yield "first\n"
            raise ValueError("the secret is 42")

        return StreamingResponse(chunks(), media_type="text/plain")

    @endpoint("/growing")
    def growing(self) -> StreamingResponse:
        self.hints = ["at the head"]

        def chunks() -> Iterator[str]:
            yield "first\n"
            self.hints = ["at the end"]

        return StreamingResponse(chunks(), media_type="text/plain")


class ProbePair(Probe):
    max_multiplexing = 2


class Quiet(App):
    """Gives no hints."""

    @endpoint("/")
    def echo(self, body: dict[str, Any]) -> dict[str, Any]:
        return body

    @endpoint("/oom")
    def oom(self) -> None:
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    @endpoint("/held")
    def held(self, gate: Gate) -> str:
        gate.enter()
        gate.hold()
        return "held"


class AsyncHints(Quiet):
    async def provide_hints(self) -> list[str]:  # type: ignore[override]
        return ["a"]


class Cached(App):
    """Leases on the loop, to see where the hints are asked for."""

    max_multiplexing = 2

    def setup(self) -> None:
        self.models = self.runner.model_cache(load=str.upper)
        self.asked_on: set[str] = set()

    def provide_hints(self) -> Iterable[str]:
        self.asked_on.add(threading.current_thread().name)
        return self.models.resident

    @endpoint("/async-lease")
    async def async_lease(self, body: dict[str, str]) -> dict[str, Any]:
        async with self.models.lease(body["model"]) as model:
            return {"model": model, "asked_on": sorted(self.asked_on)}

    @endpoint("/index")
    def index(self, body: dict[str, str]) -> dict[str, Any]:
        model = self.models[body["model"]]
        return {"model": model, "leases": {r.name: r.leases for r in self.models.residents()}}

    @endpoint("/index-stream")
    def index_stream(self, body: dict[str, str]) -> StreamingResponse:
        model = self.models[body["model"]]
        return StreamingResponse(f"{model} {self.models.residents()[0].leases}\n" for _ in range(2))

    @endpoint("/leases")
    def leases(self) -> dict[str, int]:
        return {r.name: r.leases for r in self.models.residents()}

    @endpoint("/lease")
    def lease(self, body: dict[str, str]) -> str:
        with self.models.lease(body["model"]) as model:
            if "folder" in body:
                gate = Gate(folder=Path(body["folder"]))
                gate.enter()
                gate.hold()
            return model

    @endpoint("/idle")
    def idle(self) -> str:
        return "no model"


class Ported(App):
    """The example of fal's page on hints, its dict of models a cache by one line."""

    def setup(self) -> None:
        self.models = self.runner.model_cache(unload=self.unload)
        self.unloaded: list[str] = []

    def provide_hints(self) -> Iterable[str]:
        return self.models.keys()

    def unload(self, model: str) -> None:
        self.unloaded.append(model)

    def load_model(self, name: str) -> str:
        if name in self.models:
            return self.models[name]

        model = name.upper()

        self.models[name] = model
        return model

    @endpoint("/")
    def run_model(self, body: dict[str, str]) -> dict[str, Any]:
        model = self.load_model(body["model"])
        leases = {r.name: r.leases for r in self.models.residents()}
        return {"model": model, "leases": leases, "unloaded": self.unloaded}
