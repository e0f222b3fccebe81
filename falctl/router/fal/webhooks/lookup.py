"""
Finds the addresses of receivers, each lookup on a thread of its own.

The event loop would ask two at a time: two names whose servers do not answer would hold up every other receiver, this
machine's own included. A thread cannot be stopped in mid-lookup, so nobody waits for one at the end: they are daemons.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import Any, cast

from aiohttp import ThreadedResolver


def own_threads_resolver() -> ThreadedResolver:
    """Return a resolver for an `aiohttp.TCPConnector` of the running loop."""
    return ThreadedResolver(cast("asyncio.AbstractEventLoop", _Lookups(asyncio.get_running_loop())))


class _Lookups:
    """What aiohttp's resolver asks of an event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.getnameinfo = loop.getnameinfo  # of addresses that are known: nobody is asked

    async def getaddrinfo(self, host: str, port: int, **options: Any) -> Any:
        """Return what `socket.getaddrinfo` does. Raises OSError."""
        answer: asyncio.Future[Any] = self._loop.create_future()

        def ask() -> None:
            found: Any = None
            error: OSError | None = None
            try:
                found = socket.getaddrinfo(host, port, **options)
            except OSError as refused:
                error = refused
            except ValueError as refused:  # "a..b" is no name: who asks must not wait for a thread that died
                error = OSError(str(refused))
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                self._loop.call_soon_threadsafe(tell, found, error)

        def tell(found: Any, error: OSError | None) -> None:
            if answer.done():
                return  # who asked has given up
            if error is None:
                answer.set_result(found)
            else:
                answer.set_exception(error)

        threading.Thread(target=ask, name=f"lookup-{host}", daemon=True).start()
        return await answer
