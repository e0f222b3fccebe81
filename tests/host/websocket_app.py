"""A falctl.App with a websocket."""

import asyncio

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

    @endpoint("/")
    def answer(self) -> str:
        return "not a websocket"
