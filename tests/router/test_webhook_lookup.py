"""Names of receivers: one whose servers do not answer holds up no other."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import pytest
import uvloop

from falctl.router.fal.webhooks.lookup import own_threads_resolver


def test_names_that_nobody_answers_for_hold_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    real = socket.getaddrinfo

    def look(host: str, *args: Any, **options: Any) -> Any:
        if host.endswith(".silent.test"):
            released.wait(60)
        return real(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look)

    async def run() -> None:
        resolver = own_threads_resolver()
        waiting = [asyncio.ensure_future(resolver.resolve(f"n{n}.silent.test", 80)) for n in range(40)]
        async with asyncio.timeout(60):
            await asyncio.sleep(0)  # all of them have been asked for by now
            found = await resolver.resolve("localhost", 8080, socket.AF_INET)
        assert [(one["host"], one["port"]) for one in found] == [("127.0.0.1", 8080)]
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
    released.set()


def test_a_name_that_is_none_is_refused() -> None:
    async def run() -> None:
        with pytest.raises(socket.gaierror):
            await own_threads_resolver().resolve("no-such-host.invalid", 80)

    asyncio.run(run())


@pytest.mark.parametrize("name", ["a..b", ".", "a" * 64 + ".test", "a\0b"])
def test_what_cannot_be_a_name_is_refused_at_once_by_the_thread_that_looks(name: str) -> None:
    async def run() -> None:
        async with asyncio.timeout(60):
            with pytest.raises(OSError, match=r".+"):
                await own_threads_resolver().resolve(name, 80)

    asyncio.run(run())
