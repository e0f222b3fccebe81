"""The host's event stream: what happened here, to every router that listens."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

from starlette.types import Receive, Send

from falctl.tasks import spawn
from falctl.wire import Message, encode

LAG_MAX: Final = 10_000
"""Messages a reader may be behind; then it is cut off, and learns the rest from the board when it is back."""


class _Reader:
    def __init__(self, task: asyncio.Task[None]) -> None:
        self.task = task
        self.lines: deque[bytes] = deque()
        self.lag_bytes = 0
        self.ready = asyncio.Event()


class EventHub:
    """Sends each message to every reader, in order."""

    def __init__(self) -> None:
        self._readers: set[_Reader] = set()

    @property
    def listening(self) -> bool:
        """Return whether anybody reads."""
        return bool(self._readers)

    @property
    def lag_bytes(self) -> int:
        """Return what the slowest reader has not taken yet."""
        return max((reader.lag_bytes for reader in self._readers), default=0)

    def emit(self, message: Message) -> None:
        """Queue *message* for every reader."""
        line = encode(message)
        for reader in tuple(self._readers):
            if len(reader.lines) >= LAG_MAX:
                self._readers.discard(reader)
                reader.task.cancel()
            else:
                reader.lines.append(line)
                reader.lag_bytes += len(line)
                reader.ready.set()

    async def flush(self) -> None:
        """Let readers that can be written to get what is queued, before the caller goes on."""
        if self._readers:
            await asyncio.sleep(0)

    async def serve(self, first: Sequence[Message], receive: Receive, send: Send) -> None:
        """Answer one reader: *first*, then whatever is emitted from now on, until it goes or lags too far."""
        task = asyncio.current_task()
        assert task is not None, "served outside a task"
        reader = _Reader(task)
        reader.lines.extend(map(encode, first))
        reader.ready.set()
        self._readers.add(reader)
        spawn(_cut_when_gone(reader, receive), name="events.watch")
        headers = [(b"content-type", b"application/x-ndjson")]
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            while True:
                await reader.ready.wait()
                reader.ready.clear()
                batch = b"".join(reader.lines)
                reader.lines.clear()
                await send({"type": "http.response.body", "body": batch, "more_body": True})
                reader.lag_bytes = sum(map(len, reader.lines))
        except asyncio.CancelledError:
            task.uncancel()
        finally:
            self._readers.discard(reader)


async def _cut_when_gone(reader: _Reader, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    reader.task.cancel()
