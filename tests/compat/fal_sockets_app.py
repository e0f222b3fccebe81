"""A real fal.App that is talked to: realtime, a raw websocket, a stream, and requests that it cancels itself."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import fal
from fal.exceptions import RequestCancelledException
from fastapi import Header, WebSocket
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from tests.wait import until

GATE_S = 60.0
RAISES = {"bug": ValueError("a bug of this websocket"), "oom": RuntimeError("CUDA error: out of memory")}


BROKEN = -2
"""Asked for by a number, as the input has no words."""


class AcceleratorError(RuntimeError):
    """Named as torch's."""


class Ask(BaseModel):
    model: str = ""
    n: int = 0
    folder: str = ""


class Told(BaseModel):
    n: int
    thread: str = ""


class Talk(fal.App, keep_alive=300):
    max_multiplexing = 2

    def setup(self) -> None:
        self.models: dict[str, int] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.stopped: dict[str, threading.Event] = {}

    def provide_hints(self) -> list[str]:
        return list(self.models)

    @fal.realtime("/realtime", buffering=8)
    def realtime(self, ask: Ask) -> Told:
        """Work for a while if there is a folder: until somebody puts "open" there."""
        if ask.model:
            self.models[ask.model] = 1
        if ask.n == BROKEN:
            raise AcceleratorError("CUDA error: an illegal memory access was encountered")
        if ask.n < 0:
            raise ValueError("no negative numbers")
        if ask.folder:
            (Path(ask.folder) / "entered").touch()
            until((Path(ask.folder) / "open").exists, within_s=GATE_S, what="open")
        return Told(n=2 * ask.n, thread=threading.current_thread().name)

    @fal.realtime("/counts")
    def counts(self, ask: Ask) -> Iterator[Told]:
        for n in range(ask.n):
            yield Told(n=n, thread=threading.current_thread().name)

    @fal.realtime("/sums")
    async def sums(self, asks: AsyncIterator[Ask]) -> AsyncIterator[Told]:
        total = 0
        async for ask in asks:
            total += ask.n
            yield Told(n=total)

    @fal.endpoint("/raw", is_websocket=True)
    async def raw(self, websocket: WebSocket) -> None:
        """Say back what is said, but for a few words."""
        chosen = next(iter(websocket.scope["subprotocols"]), None)
        await websocket.accept(subprotocol=chosen, headers=[(b"x-app", b"talk")])
        while (message := await websocket.receive())["type"] == "websocket.receive":
            word = message.get("text")
            if word in RAISES:
                raise RAISES[word]
            match word:
                case "headers":
                    seen = dict(websocket.headers) | {"query": str(websocket.query_params)}
                    await websocket.send_json(seen)
                case "close":
                    return await websocket.close(4001, "as you wish")
                case "return":
                    return None
                case "deaf":
                    await asyncio.Event().wait()
                case "flood":
                    await flood(websocket)
                case _:
                    await websocket.send({**message, "type": "websocket.send"})
        print("DISCONNECTED", message["code"], message.get("reason") or "-")
        return None

    @fal.endpoint("/refuses", is_websocket=True)
    async def refuses(self, websocket: WebSocket) -> None:
        await websocket.close(4003)

    @fal.endpoint("/predict")
    async def predict(self, ask: Ask, x_fal_request_id: str = Header()) -> None:
        task = self.tasks[x_fal_request_id] = asyncio.create_task(asyncio.sleep(GATE_S))  # noqa: TID251 - fal's own example
        (Path(ask.folder) / "entered").touch()
        try:
            await task
        except asyncio.CancelledError:
            raise RequestCancelledException("cancelled by its own convention") from None

    @fal.endpoint("/predict/cancel")
    async def cancel_predict(self, x_fal_request_id: str = Header()) -> None:
        self.tasks[x_fal_request_id].cancel()

    @fal.endpoint("/sync")
    def sync(self, ask: Ask, x_fal_request_id: str = Header()) -> None:
        stopped = self.stopped[x_fal_request_id] = threading.Event()
        (Path(ask.folder) / "entered").touch()
        if stopped.wait(GATE_S):
            raise RequestCancelledException("a thread can be told, too")

    @fal.endpoint("/sync/cancel")
    def cancel_sync(self, x_fal_request_id: str = Header()) -> None:
        self.stopped[x_fal_request_id].set()

    @fal.endpoint("/deaf")
    async def deaf(self, ask: Ask) -> None:
        (Path(ask.folder) / "entered").touch()
        await asyncio.sleep(GATE_S)

    @fal.endpoint("/deaf/cancel")
    async def cancel_deaf(self) -> None:
        raise ValueError("I cannot")

    @fal.endpoint("/stream")
    def stream(self, ask: Ask) -> StreamingResponse:
        """Send two chunks; the second once the client has put "open" into the folder, having read the first."""

        def chunks() -> Iterator[str]:
            yield 'data: {"n": 1}\n\n'
            until((Path(ask.folder) / "open").exists, within_s=GATE_S, what="open")
            self.models[ask.model] = 1
            yield 'data: {"n": 2}\n\n'

        return StreamingResponse(chunks(), media_type="text/event-stream")

    @fal.endpoint("/endless")
    async def endless(self, ask: Ask) -> StreamingResponse:
        async def chunks() -> AsyncIterator[str]:
            while True:
                yield 'data: {"n": 1}\n\n'
                await asyncio.sleep(0.01)

        return StreamingResponse(chunks(), media_type="text/event-stream")


async def flood(websocket: WebSocket) -> None:
    """Send more than fits into any buffer, for as long as somebody is there."""
    while True:
        await websocket.send_bytes(bytes(1 << 20))
