"""Whatever happens, from however many threads: no budget is exceeded, a lease has its model, nothing stays held."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from falctl.core.activations import Drawing
from falctl.errors import ModelTooLargeError
from falctl.toolkit import ModelCache, RequestCancelled
from falctl.toolkit.cache_hooks import CacheHooks, CachePolicy
from tests.toolkit.counted_store import CountedStore, Model, OutOfMemoryError, assert_all_can_go

SIZES = {
    "a": {"a.text": 20, "a.unet": 50},
    "b": {"b.text": 10, "b.unet": 40, "shared": 5},
    "c": {"c.unet": 30, "shared": 5},
    "d": {"d.unet": 30, "e.unet": 3, "shared": 5},
    "e": {"e.unet": 3},
    "huge": {"huge.unet": 900, "shared": 5},
}
NAMES = tuple(SIZES)
DEVICE, HOST = 120, 150
MOVES = ("construct", "fill", "place")
EXPECTED = (ModelTooLargeError, OutOfMemoryError, OSError, RequestCancelled)

here = threading.local()


def made(*, keep_alive_s: float = -1.0, models_max: int = 0) -> tuple[CountedStore, ModelCache[Model]]:
    store = CountedStore(SIZES, DEVICE, HOST, once=frozenset({"a.text", "b.text"}))
    policy = CachePolicy(keep_alive_s=lambda _name: keep_alive_s, models_max=models_max)
    hooks = CacheHooks(cancelled=lambda: getattr(here, "cancelled", threading.Event()))
    return store, ModelCache(store, policy=policy, hooks=hooks)


def check(store: CountedStore) -> None:
    assert store.used_bytes <= DEVICE
    assert store.used_host_bytes <= HOST


class Steps:
    """One thread's doings."""

    def __init__(self, store: CountedStore, cache: ModelCache[Model]) -> None:
        self.store = store
        self.cache = cache
        self.leased = ExitStack()
        self.models: list[Model] = []

    def do(self, what: str, name: str, size: int) -> None:
        here.cancelled = threading.Event()
        with suppress(*EXPECTED):
            getattr(self, what)(name, size)
        check(self.store)
        assert all(model.ready for model in self.models)

    def lease(self, name: str, size: int) -> None:
        self.models.append(self.leased.enter_context(self.cache.lease(name, Drawing(size, 1))))

    def release(self, name: str, size: int) -> None:
        self.models.clear()
        self.leased.close()

    def run(self, name: str, size: int) -> None:
        assert self.cache.run(name, lambda model: model.draw(size)) == name.upper()

    def load(self, name: str, size: int) -> None:
        self.cache.load(name, "ram" if size % 2 else "vram", evict=NAMES[:2])

    def evict(self, name: str, size: int) -> None:
        self.cache.evict(name, ("vram", "ram", "disk")[size % 3])

    def pin(self, name: str, size: int) -> None:
        self.cache.pin(name) if size % 2 else self.cache.unpin(name)

    def tend(self, name: str, size: int) -> None:
        self.cache.tend()

    def fail(self, name: str, size: int) -> None:
        move = MOVES[size % 3]
        self.store.broken[f"{move} {name}"] = OutOfMemoryError() if move != "fill" else OSError()
        self.lease(name, 1)

    def cancel(self, name: str, size: int) -> None:
        here.cancelled.set()
        self.lease(name, 1)


DOINGS = ("lease", "lease", "release", "run", "load", "evict", "pin", "tend", "fail", "cancel")


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(DOINGS), st.sampled_from(NAMES), st.integers(0, 60)), max_size=30),
    st.sampled_from((-1.0, 0.0)),
    st.sampled_from((0, 2)),
)
def test_any_history_of_one_thread_keeps_the_budgets_and_leaves_nothing(
    history: list[tuple[str, str, int]], keep_alive_s: float, models_max: int
) -> None:
    store, cache = made(keep_alive_s=keep_alive_s, models_max=models_max)
    steps = Steps(store, cache)
    for what, name, size in history:
        steps.do(what, name, size)
    steps.release("", 0)
    store.broken.clear()
    assert_all_can_go(store, cache)


@pytest.mark.parametrize("seed", range(6))
def test_so_does_any_history_of_several_threads(seed: int) -> None:
    store, cache = made(keep_alive_s=(-1.0, 0.0)[seed % 2])
    threads = 4

    def live(number: int) -> None:
        dice = random.Random(seed * threads + number)
        steps = Steps(store, cache)
        for _ in range(80):
            steps.do(dice.choice(DOINGS), dice.choice(NAMES), dice.randrange(60))
        steps.release("", 0)

    with ThreadPoolExecutor(threads) as pool:
        for living in [pool.submit(live, number) for number in range(threads)]:
            living.result(60.0)
    store.broken.clear()
    assert_all_can_go(store, cache)
