"""The event stream: every message in order, and a reader that lags too far is cut off."""

from __future__ import annotations

import asyncio
from typing import Any

from falctl.host.events import LAG_MAX, EventHub
from falctl.wire import Released, decode

WAIT_S = 60.0


class Peer:
    """The server's side of one reader; `blocked` holds every send."""

    def __init__(self) -> None:
        self.lines: list[Any] = []
        self.gone = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()

    async def receive(self) -> Any:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await self.writable.wait()
        if message["type"] == "http.response.body":
            self.lines += [decode(line) for line in message["body"].splitlines()]


def released(n: int) -> Released:
    return Released(1, f"r{n}")


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_reader_that_lags_is_cut_off_and_the_others_miss_nothing() -> None:
    async def scene() -> None:
        hub, slow, quick = EventHub(), Peer(), Peer()
        tasks = [asyncio.ensure_future(hub.serve([released(0)], p.receive, p.send)) for p in (slow, quick)]
        await settle()
        slow.writable.clear()
        hub.emit(released(1))
        await settle()  # the slow one holds message 1 in a send that does not return
        for n in range(2, LAG_MAX + 2):
            hub.emit(released(n))
            if n % 1000 == 0:
                await settle()
        await settle()
        assert not tasks[0].done()
        hub.emit(released(LAG_MAX + 2))
        await settle()
        assert tasks[0].done()
        assert slow.lines == [released(0)]
        assert quick.lines == [released(n) for n in range(LAG_MAX + 3)]
        quick.gone.set()
        await asyncio.wait_for(tasks[1], WAIT_S)

    asyncio.run(scene())


def test_a_reader_that_goes_ends_its_stream() -> None:
    async def scene() -> None:
        hub, peer = EventHub(), Peer()
        task = asyncio.ensure_future(hub.serve([released(0)], peer.receive, peer.send))
        await settle()
        peer.gone.set()
        await asyncio.wait_for(task, WAIT_S)
        hub.emit(released(1))
        assert peer.lines == [released(0)]

    asyncio.run(scene())


def test_flush_lets_readers_have_what_was_emitted_before_it_returns() -> None:
    async def scene() -> None:
        hub, peer = EventHub(), Peer()
        task = asyncio.ensure_future(hub.serve([released(0)], peer.receive, peer.send))
        await settle()
        hub.emit(released(1))
        assert peer.lines == [released(0)]
        await hub.flush()
        assert peer.lines == [released(0), released(1)]
        peer.gone.set()
        await asyncio.wait_for(task, WAIT_S)

    asyncio.run(scene())
