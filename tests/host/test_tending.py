"""Idle models leave on the app's thread when their time is over, and what does not leave is not tried without end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine

import pytest

from falctl.host.app_threads import AppThreads
from falctl.host.tending import Tending
from falctl.toolkit import ModelCache
from falctl.toolkit.cache_hooks import CacheHooks, CachePolicy
from falctl.toolkit.opaque_store import OpaqueStore
from tests.toolkit.counted_store import CountedStore, Model

WAIT_S = 60.0


async def seen(condition: Callable[[], object], what: str) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - what it waits for happens on a thread
            await asyncio.sleep(0.01)
    assert condition(), what


def run(story: Callable[[AppThreads], Coroutine[None, None, None]]) -> None:
    async def tell() -> None:
        await story(AppThreads(1))

    asyncio.run(tell())


def test_a_model_leaves_on_the_apps_thread_though_nobody_comes() -> None:
    left_on: list[str] = []

    async def story(threads: AppThreads) -> None:
        caches: list[ModelCache[str]] = []
        tending = Tending(caches, threads)
        tending.start()
        store = OpaqueStore(str.upper, unload=lambda _: left_on.append(threading.current_thread().name))
        policy = CachePolicy(keep_alive_s=lambda _name: 0.05)
        cache = ModelCache(store, policy=policy, hooks=CacheHooks(idle=tending.wake))
        caches.append(cache)
        await threads.run(cache.load, "a")
        await seen(lambda: left_on, "it is unloaded")
        assert cache.residents() == ()

    run(story)
    assert [name.partition("_")[0] for name in left_on] == ["app"]


def test_an_unload_that_raises_is_logged_and_the_others_leave(caplog: pytest.LogCaptureFixture) -> None:
    def unload(_model: str) -> None:
        raise ZeroDivisionError

    async def story(threads: AppThreads) -> None:
        policy = CachePolicy(keep_alive_s=lambda _name: 0.05)
        caches = [ModelCache(OpaqueStore(str.upper, unload=unload), policy=policy) for _ in range(2)]
        tending = Tending(caches, threads)
        for cache in caches:
            await threads.run(cache.load, "a")
        tending.start()
        await seen(lambda: not any(cache.residents() for cache in caches), "both have left")

    run(story)
    assert [record.message for record in caplog.records] == ["cache.tend_failed"] * 2


class Clinging(CountedStore):
    """Cannot let go of host memory, as quantised weights cannot."""

    asked = 0

    def drop(self, key: str) -> None:
        self.asked += 1


def test_what_cannot_leave_is_left_alone_for_a_while() -> None:
    store = Clinging({"a": {"unet": 3}})

    async def story(threads: AppThreads) -> None:
        cache: ModelCache[Model] = ModelCache(store, policy=CachePolicy(keep_alive_s=lambda _name: 0.3))
        tending = Tending([cache], threads)
        await threads.run(cache.load, "a")
        tending.start()
        await seen(lambda: store.asked, "it was to leave host memory")
        for _ in range(20):
            tending.wake()
            await asyncio.sleep(0)
        await threads.run(int)
        assert store.asked == 1

    run(story)
