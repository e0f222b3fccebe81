"""A falctl.App with a websocket."""

import asyncio

from starlette.responses import Response
from starlette.websockets import WebSocket

from falctl import App, endpoint
from falctl.toolkit import NotFoundError


class AcceleratorError(RuntimeError):
    """Named as torch's."""


class Talks(App):
    def setup(self) -> None:
        self.warm: list[str] = []

    def provide_hints(self) -> list[str]:
        return self.warm

    @endpoint("/talk")
    async def talk(self, websocket: WebSocket, name: str) -> None:
        """Say hello once it is told to; a few words are orders."""
        if name == "nobody":
            raise NotFoundError("nobody of that name")
        await websocket.accept()
        async for word in websocket.iter_text():
            match word:
                case "learn":
                    self.warm.append(name)
                case "steps":
                    self.runner.progress(1, 2)
                case "break":
                    raise AcceleratorError("CUDA error: an illegal memory access was encountered")
                case "sleep":
                    await asyncio.sleep(60)
                case _:
                    pass
            await websocket.send_text(f"{word}, {name}")

    @endpoint("/careless")
    async def careless(self, websocket: WebSocket) -> None:
        """Look for no end, and pass itself off as us."""
        await websocket.accept(headers=[(b"x-falctl-runner", b"7"), (b"x-app", b"yes")])
        while True:
            await websocket.receive_text()

    @endpoint("/unsendable")
    async def unsendable(self, websocket: WebSocket) -> None:
        await websocket.accept(headers=[(b"x-app", b"a\r\nx-injected: b")])

    @endpoint("/pretends")
    async def pretends(self, websocket: WebSocket) -> None:
        await websocket.send_denial_response(Response("", 503, {"x-falctl-bounced": "1"}))

    @endpoint("/")
    def answer(self) -> str:
        return "not a websocket"
