"""Reading a request's body whole, within the limits of size, pace and memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from starlette.types import Message

from falctl.core.admission import ByteBudget
from falctl.errors import BodyTimeoutError, BodyTooLargeError, ClientGoneError, QueueFullError
from falctl.router.edge.call import Call


@dataclass(slots=True)
class Intake:
    """The limits, and the bytes that all bodies together hold now. A reload changes the limits in place."""

    budget: ByteBudget
    max_body_bytes: int
    pause_s: float
    """Longest wait for more of a body."""
    place_s: Callable[[], float]
    """Tells in how many seconds the next waiting request should leave, and its body with it."""

    async def read(self, call: Call) -> bytes:
        """
        Return the body of *call*. Its bytes stay counted until `release`, also when this raises.

        Raises:
            BodyTooLargeError, BodyTimeoutError, QueueFullError: a limit was hit; the rest was not read.
            ClientGoneError: the client left in the middle.
        """
        announced = int(call.head.get(b"content-length", b"0"))
        if announced > self.max_body_bytes:
            raise self._too_large()
        if self.budget.used_bytes + announced > self.budget.limit_bytes:
            raise self._no_room()
        chunks: list[bytes] = []
        while not call.body_read:
            chunks.append(await self._next(call))
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def stream(self, call: Call) -> AsyncIterator[bytes]:
        """Yield the body of *call* as it comes, for who keeps none of it. Raises as `read`, but for limits of size."""
        while not call.body_read:
            message = await self._message(call)
            call.body_read = not message["more_body"]
            yield message["body"]

    def release(self, call: Call) -> None:
        """Give the bytes of *call*'s body back to the budget."""
        self.budget.release(call.held_bytes)
        call.held_bytes = 0

    async def _next(self, call: Call) -> bytes:
        message = await self._message(call)
        chunk: bytes = message["body"]
        if call.held_bytes + len(chunk) > self.max_body_bytes:
            raise self._too_large()
        if not self.budget.reserve(len(chunk)):
            raise self._no_room()
        call.held_bytes += len(chunk)
        call.body_read = not message["more_body"]
        return chunk

    async def _message(self, call: Call) -> Message:
        message = await (call.receive() if call.connection.has_input else self._receive_within(call))
        if message["type"] == "http.disconnect":
            msg = "the client left while it sent its body"
            raise ClientGoneError(msg)
        return message

    async def _receive_within(self, call: Call) -> Message:
        try:
            async with asyncio.timeout(self.pause_s):
                return await call.receive()
        except TimeoutError:
            msg = f"nothing of the request's body came for {self.pause_s:g} s (server.body_timeout)"
            raise BodyTimeoutError(msg) from None

    def _too_large(self) -> BodyTooLargeError:
        return BodyTooLargeError(f"the request's body is over {self.max_body_bytes} bytes (server.max_body)")

    def _no_room(self) -> QueueFullError:
        held = f"the bodies of waiting requests hold {self.budget.used_bytes} bytes"
        advice = f"queue.max_bytes allows {self.budget.limit_bytes}; send this one again later, or raise it"
        return QueueFullError(f"{held}, and {advice}", retry_after_s=self.place_s())
