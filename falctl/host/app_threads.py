"""
The threads that run an app's sync code: as many as it has slots, and nobody else's work on them.

Waiting for such a thread cannot be cut short: a cancelled wait ends only when the thread has, because the card is
busy until then. So whatever a slot guards is free when the code that held it has been left.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar, cast

import starlette.responses

T = TypeVar("T")

_END: Final = object()


class AppThreads:
    """An executor of *count* threads."""

    def __init__(self, count: int) -> None:
        self._marks = threading.local()
        self._executor = ThreadPoolExecutor(count, "app", initializer=self._mark)

    @property
    def inside(self) -> bool:
        """Return whether the calling thread is one of these."""
        return getattr(self._marks, "ours", False)

    async def run(self, call: Callable[..., T], *args: Any) -> T:
        """
        Return ``call(*args)`` from one of these threads, with the caller's context variables.

        Cancelled, it still waits until the thread has returned.
        """
        context = contextvars.copy_context()
        future = asyncio.wrap_future(self._executor.submit(context.run, _contained, call, args))
        try:
            result: T = await asyncio.shield(future)
        except asyncio.CancelledError:
            await _outlast(future)
            raise
        return result

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Start *call* and return at once; from any thread."""
        return self._executor.submit(call)

    async def iterate(self, chunks: Iterable[T]) -> AsyncIterator[T]:
        """Yield from *chunks*, each step on one of these threads; closes it in the end."""
        iterator = iter(chunks)
        try:
            while (chunk := await self.run(next, iterator, _END)) is not _END:
                yield cast("T", chunk)
        finally:
            if (close := getattr(iterator, "close", None)) is not None:
                await self.run(close)

    def serve_streams(self) -> None:
        """
        Make starlette iterate the sync body of a `StreamingResponse` on these threads.

        It has no option for that: it takes a thread of anyio's pool, where a model would run beside another
        request's, and is left running when the stream is cancelled.
        """
        assert hasattr(starlette.responses, "iterate_in_threadpool"), "starlette has changed its streams"
        starlette.responses.iterate_in_threadpool = self.iterate

    def _mark(self) -> None:
        self._marks.ours = True


def _contained(call: Callable[..., T], args: tuple[Any, ...]) -> T:
    """Call, and turn what a future or an event loop would trip over into an ordinary error of the app."""
    try:
        return call(*args)
    except SystemExit as error:
        msg = f"the app called sys.exit({error.code!r})"
        raise RuntimeError(msg) from error
    except StopIteration as error:
        msg = "the app raised StopIteration"
        raise RuntimeError(msg) from error


async def _outlast(future: asyncio.Future[Any]) -> None:
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            continue  # said once already; the caller is told when the thread has returned
    if not future.cancelled():
        future.exception()  # or asyncio complains that nobody looked at it
