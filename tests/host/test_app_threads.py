"""The app's threads: a wait for one ends when the thread has, and nobody else's work runs on them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextvars import ContextVar

import pytest

from falctl.host.app_threads import AppThreads

WAIT_S = 60.0


def name() -> str:
    return threading.current_thread().name


def test_a_cancelled_wait_ends_only_when_the_thread_has_returned() -> None:
    async def scene() -> None:
        threads = AppThreads(2)
        entered, go = threading.Event(), threading.Event()
        returned = []

        def work() -> None:
            entered.set()
            assert go.wait(WAIT_S)
            returned.append(True)

        async def wait() -> None:
            await threads.run(work)

        waiting = asyncio.ensure_future(wait())
        await asyncio.to_thread(entered.wait, WAIT_S)
        for _ in range(3):  # as often as somebody cancels
            waiting.cancel()
            done, _ = await asyncio.wait([waiting], timeout=0.02)
            assert not done
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(waiting, WAIT_S)
        assert returned

    asyncio.run(scene())


def test_an_error_after_the_wait_was_cancelled_is_dropped_in_silence() -> None:
    async def scene() -> None:
        complaints: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
        threads = AppThreads(1)
        entered, go = threading.Event(), threading.Event()

        def work() -> None:
            entered.set()
            assert go.wait(WAIT_S)
            raise ValueError

        waiting = asyncio.ensure_future(threads.run(work))
        await asyncio.to_thread(entered.wait, WAIT_S)
        waiting.cancel()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(waiting, WAIT_S)
        assert complaints == []

    asyncio.run(scene())


def test_code_on_a_thread_sees_the_callers_context_variables() -> None:
    variable: ContextVar[str] = ContextVar("variable")

    async def scene() -> None:
        variable.set("mine")
        assert await AppThreads(1).run(variable.get) == "mine"

    asyncio.run(scene())


def test_a_thread_knows_that_it_is_one_of_ours() -> None:
    async def scene() -> None:
        threads = AppThreads(1)
        assert not threads.inside
        assert await threads.run(lambda: threads.inside)

    asyncio.run(scene())


def test_a_stream_is_iterated_and_closed_on_these_threads_also_when_it_is_left_early() -> None:
    where = []

    def chunks() -> Iterator[str]:
        try:
            yield name()
            yield name()
        finally:
            where.append(name())

    async def scene() -> None:
        threads = AppThreads(1)
        stream = threads.iterate(chunks())
        where.append(await anext(stream))
        await stream.aclose()  # type: ignore[attr-defined]
        assert [chunk async for chunk in threads.iterate(["a", "b"])] == ["a", "b"]

    asyncio.run(scene())
    assert where == ["app_0", "app_0"]


def test_an_exit_on_a_thread_is_an_error_of_the_app() -> None:
    def leave() -> None:
        raise SystemExit(3)

    async def scene() -> None:
        with pytest.raises(RuntimeError, match=r"sys.exit\(3\)"):
            await AppThreads(1).run(leave)

    asyncio.run(scene())
