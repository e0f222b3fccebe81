"""The handle as an app uses it: blocks plain and async, ``models[name]``, and a dict's ways."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from falctl.toolkit import ModelCache
from falctl.toolkit.cache_hooks import CacheHooks, CachePolicy
from falctl.toolkit.opaque_store import OpaqueStore
from tests.wait import until

WAIT_S = 60.0


@dataclass
class Request:
    """Stands for the host: what a request holds, given back at its end."""

    kept: dict[object, tuple[Any, Callable[[], None]]] | None = None
    hooks: CacheHooks = field(init=False)

    def __post_init__(self) -> None:
        self.hooks = CacheHooks(kept=lambda: self.kept)

    @contextmanager
    def served(self) -> Iterator[None]:
        self.kept = {}
        yield
        for _, give_back in self.kept.values():
            give_back()
        self.kept = None


def cache_of(
    hooks: CacheHooks | None = None, models_max: int = 0, **gates: threading.Event
) -> ModelCache[str]:
    def load(name: str) -> str:
        if name in gates:
            assert gates[name].wait(WAIT_S)
        return name.upper()

    policy = CachePolicy(models_max=models_max)
    return ModelCache(OpaqueStore(load), policy=policy, hooks=hooks or CacheHooks())


def leases(cache: ModelCache[str]) -> dict[str, int]:
    return {r.name: r.leases for r in cache.residents()}


# On an event loop


def test_an_async_block_loads_on_a_thread_while_the_loop_goes_on() -> None:
    gate = threading.Event()
    cache = cache_of(a=gate)

    async def serve() -> None:
        async def open_the_gate() -> None:
            gate.set()

        opening = asyncio.ensure_future(open_the_gate())  # runs only if the loop is not held up
        async with cache.lease("a") as model:
            assert model == "A"
            assert leases(cache) == {"a": 1}
        await opening

    asyncio.run(serve())
    assert leases(cache) == {"a": 0}


def test_an_error_of_the_load_or_of_the_block_leaves_nothing_leased() -> None:
    cache = cache_of()
    empty: ModelCache[str] = ModelCache(OpaqueStore())

    async def serve() -> None:
        with pytest.raises(KeyError, match="a"):
            async with empty.lease("a"):
                pass
        with pytest.raises(ZeroDivisionError):
            async with cache.lease("a"):
                raise ZeroDivisionError

    asyncio.run(serve())
    assert (leases(cache), leases(empty)) == ({"a": 0}, {})


def test_a_wait_that_is_cancelled_gives_back_what_its_thread_got() -> None:
    gate, loading = threading.Event(), threading.Event()

    def load(name: str) -> str:
        loading.set()
        assert gate.wait(WAIT_S)
        return name

    cache = ModelCache(OpaqueStore(load))

    async def lease() -> None:
        async with cache.lease("a"):
            raise AssertionError

    async def serve() -> None:
        task = asyncio.ensure_future(lease())
        assert await asyncio.to_thread(loading.wait, WAIT_S)
        task.cancel()
        await asyncio.sleep(0)
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(serve())
    assert leases(cache) == {"a": 0}


def test_what_would_hold_up_the_loop_says_what_to_write_instead() -> None:
    cache = cache_of(Request({}).hooks)

    async def serve() -> None:
        with pytest.raises(RuntimeError, match="use `async with`"), cache.lease("a"):
            pass
        with pytest.raises(RuntimeError, match=r"use `async with models.lease\(name\)`"):
            cache["a"]
        for call in (
            lambda: cache.run("a", str.upper),
            lambda: cache.load("a"),
            lambda: cache.__setitem__("a", "A"),
        ):
            with pytest.raises(RuntimeError, match="hold up every other request"):
                call()

    asyncio.run(serve())
    assert leases(cache) == {}


# By index


def test_a_model_by_index_is_leased_until_its_request_ends() -> None:
    request = Request()
    cache = cache_of(request.hooks, models_max=1)
    with request.served():
        assert cache["a"] == "A"
        assert cache["a"] == "A"
        assert leases(cache) == {"a": 1}
        with cache.lease("b"):
            pass
        assert cache.resident == ("a",)
    assert leases(cache) == {"a": 0}


def test_a_model_by_index_belongs_to_a_request() -> None:
    with pytest.raises(RuntimeError, match=r"none is served here: use `with models.lease\(name\)`"):
        cache_of()["a"]


def test_two_caches_do_not_take_each_others_models() -> None:
    request = Request()
    one = cache_of(request.hooks)
    other: ModelCache[str] = ModelCache(OpaqueStore(str.title), hooks=request.hooks)
    with request.served():
        assert (one["a"], other["a"]) == ("A", "A".title())
        assert (leases(one), leases(other)) == ({"a": 1}, {"a": 1})


def test_a_dict_of_models_is_a_cache_by_one_line() -> None:
    request = Request()
    unloaded: list[str] = []
    store: OpaqueStore[str] = OpaqueStore(unload=unloaded.append)
    models = ModelCache(store, policy=CachePolicy(models_max=2), hooks=request.hooks)

    def load_model(name: str) -> str:
        if name in models:
            return models[name]
        models[name] = name.upper()
        return models[name]

    for name in "aabac":
        with request.served():
            assert load_model(name) == name.upper()
            assert leases(models)[name] == 1
    assert unloaded == ["B"]
    assert (models.keys(), list(models), len(models)) == (("c", "a"), ["c", "a"], 2)
    assert ("a" in models, "b" in models, 7 in models) == (True, False, False)
    assert not models.loads
    with request.served(), pytest.raises(KeyError):
        models["b"]


def test_what_is_put_in_beyond_the_bound_makes_another_leave_at_once() -> None:
    unloaded: list[str] = []
    heard: list[int] = []
    policy, hooks = CachePolicy(models_max=1), CacheHooks(changed=lambda: heard.append(len(models)))
    models = ModelCache(OpaqueStore(unload=unloaded.append), policy=policy, hooks=hooks)
    models["a"] = "A"
    models["b"] = "B"
    assert (models.keys(), unloaded) == (("b",), ["A"])
    assert heard == [1, 1], "there were never two"


def test_a_model_may_be_put_in_before_any_request_and_be_replaced_during_one() -> None:
    request = Request()
    models: ModelCache[str] = ModelCache(OpaqueStore(), hooks=request.hooks)
    models["a"] = "A"
    assert leases(models) == {"a": 0}
    with request.served():
        assert models["a"] == "A"
        models["a"] = "B"
        assert models["a"] == "B"
        assert leases(models) == {"a": 1}
    with models.lease("a") as model:
        assert model == "B"
    assert leases(models) == {"a": 0}


def test_a_model_that_is_put_in_while_others_wait_for_it_is_theirs() -> None:
    gate = threading.Event()
    cache = cache_of(a=gate, b=gate)
    got: list[str] = []

    def lease(name: str) -> None:
        with cache.lease(name) as model:
            got.append(model)

    threads = [threading.Thread(target=lease, args=(name,)) for name in ("a", "b")]
    threads[0].start()
    until(lambda: leases(cache) == {"a": 1}, within_s=WAIT_S, what="a loads")
    threads[1].start()
    until(lambda: leases(cache) == {"a": 1, "b": 1}, within_s=WAIT_S, what="b waits for its turn")
    putting = threading.Thread(target=cache.__setitem__, args=("b", "mine"))
    putting.start()
    until(lambda: leases(cache) == {"a": 1, "b": 1}, within_s=WAIT_S, what="it waits, too")
    gate.set()
    for thread in (*threads, putting):
        thread.join(WAIT_S)
    assert sorted(got) in (["A", "B"], ["A", "mine"])
    with cache.lease("b") as model:
        assert model == "mine"
    assert leases(cache) == {"a": 0, "b": 0}


def test_a_cache_that_is_asked_to_load_needs_a_way_to() -> None:
    cache = cache_of()
    assert cache.loads
    assert cache.load("a") > 0
    assert cache.tier("a") == "vram"
    assert cache.tier("b") is None
