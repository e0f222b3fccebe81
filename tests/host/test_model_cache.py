"""A model cache: one load for many leases, pins, least recently used first, errors that leave nothing behind."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from falctl.toolkit import ModelCache, RequestCancelled
from falctl.toolkit.cache_hooks import CacheHooks, CachePolicy
from falctl.toolkit.opaque_store import OpaqueStore
from tests.wait import until

WAIT_S = 60.0


@dataclass
class Shelf:
    """Loads on demand, holding each load at a gate if there is one; notes what happened, in order."""

    gates: dict[str, threading.Event] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    loading: int = 0
    loading_max: int = 0

    def load(self, name: str) -> str:
        self.log.append(f"load {name}")
        self.loading += 1
        self.loading_max = max(self.loading_max, self.loading)
        try:
            if name in self.gates:
                assert self.gates[name].wait(WAIT_S)
            if name in self.errors:
                raise self.errors[name]
        finally:
            self.loading -= 1
        return name.upper()

    def unload(self, model: str) -> None:
        self.log.append(f"unload {model}")

    def cache(self, models_max: int, hooks: CacheHooks | None = None) -> ModelCache[str]:
        store = OpaqueStore(self.load, unload=self.unload)
        return ModelCache(store, policy=CachePolicy(models_max=models_max), hooks=hooks or CacheHooks())


def use(cache: ModelCache[str], *names: str) -> None:
    for name in names:
        with cache.lease(name) as model:
            assert model == name.upper()


def leases(cache: ModelCache[str]) -> dict[str, int]:
    return {r.name: r.leases for r in cache.residents()}


def test_a_resident_model_is_not_loaded_again() -> None:
    shelf = Shelf()
    use(shelf.cache(2), "a", "a", "a")
    assert shelf.log == ["load a"]


def test_the_least_recently_used_leaves_before_the_next_is_loaded() -> None:
    shelf = Shelf()
    cache = shelf.cache(2)
    use(cache, "a", "b", "a", "c")
    assert shelf.log == ["load a", "load b", "unload B", "load c"]
    assert cache.resident == ("c", "a")


def test_a_leased_model_stays_however_old_it_is() -> None:
    shelf = Shelf()
    cache = shelf.cache(2)
    with cache.lease("a"):
        use(cache, "b", "c", "d")
        assert "unload A" not in shelf.log
        assert set(cache.resident) == {"a", "d"}


def test_a_cache_full_of_leased_models_grows_and_shrinks_again_when_they_are_given_back() -> None:
    cache = Shelf().cache(1)
    with cache.lease("a"):
        with cache.lease("b"):
            assert set(cache.resident) == {"a", "b"}
        assert cache.resident == ("a",)


def test_many_leases_of_a_model_that_is_not_there_make_one_load() -> None:
    shelf = Shelf(gates={"a": threading.Event()})
    verdicts: list[str] = []
    cache = shelf.cache(2, CacheHooks(leased=lambda _name, verdict, _s: verdicts.append(verdict)))
    with ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(use, cache, "a") for _ in range(6)]
        until(lambda: leases(cache).get("a") == 6, within_s=WAIT_S, what="six leases wait")
        assert cache.resident == ()
        shelf.gates["a"].set()
        for future in waiting:
            future.result(WAIT_S)
    assert shelf.log == ["load a"]
    assert sorted(verdicts) == ["disk", *["join"] * 5]
    assert leases(cache) == {"a": 0}


def test_two_models_are_never_loaded_at_the_same_time_not_even_by_two_caches() -> None:
    shelf = Shelf(gates={name: threading.Event() for name in "ab"})
    one, other = shelf.cache(2), shelf.cache(2)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(use, one, "a"), pool.submit(use, other, "b")]
        until(lambda: leases(one) and leases(other), within_s=WAIT_S, what="both leases wait")
        shelf.gates["a"].set()
        shelf.gates["b"].set()
        for future in waiting:
            future.result(WAIT_S)
    assert shelf.loading_max == 1


def test_a_resident_model_is_leased_while_another_loads() -> None:
    shelf = Shelf(gates={"b": threading.Event()})
    cache = shelf.cache(2)
    use(cache, "a")
    with ThreadPoolExecutor(2) as pool:
        loading = pool.submit(use, cache, "b")
        until(lambda: shelf.loading, within_s=WAIT_S, what="b loads")
        pool.submit(use, cache, "a").result(WAIT_S)
        shelf.gates["b"].set()
        loading.result(WAIT_S)


def test_a_load_that_raises_caches_nothing_and_every_waiter_gets_its_error() -> None:
    shelf = Shelf(gates={"a": threading.Event()}, errors={"a": OSError("half a folder")})
    cache = shelf.cache(2)
    with ThreadPoolExecutor(3) as pool:
        waiting: list[Future[None]] = [pool.submit(use, cache, "a") for _ in range(3)]
        until(lambda: leases(cache).get("a") == 3, within_s=WAIT_S, what="three leases wait")
        shelf.gates["a"].set()
        for future in waiting:
            with pytest.raises(OSError, match="half a folder"):
                future.result(WAIT_S)
    assert cache.residents() == ()
    del shelf.errors["a"]
    use(cache, "a")
    assert shelf.log == ["load a", "load a"]


def test_a_lease_that_joined_loads_itself_when_the_request_that_was_loading_is_cancelled() -> None:
    shelf = Shelf(gates={"a": threading.Event()}, errors={"a": RequestCancelled()})
    cache = shelf.cache(2)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(use, cache, "a")
        until(lambda: shelf.loading, within_s=WAIT_S, what="a loads")
        second = pool.submit(use, cache, "a")
        until(lambda: leases(cache).get("a") == 2, within_s=WAIT_S, what="the second waits")
        error = shelf.errors["a"]

        class Once(dict[str, Exception]):
            def __contains__(self, name: object) -> bool:
                return len(shelf.log) == 1

        shelf.errors = Once(a=error)
        shelf.gates["a"].set()
        with pytest.raises(RequestCancelled):
            first.result(WAIT_S)
        second.result(WAIT_S)
    assert shelf.log == ["load a", "load a"]
    assert leases(cache) == {"a": 0}


def test_an_error_in_the_block_gives_the_model_back() -> None:
    cache = Shelf().cache(2)
    with pytest.raises(KeyError), cache.lease("a"):
        raise KeyError
    assert leases(cache) == {"a": 0}
    assert cache.evict("a")


def test_evict_drops_a_model_but_not_one_in_use_or_unknown() -> None:
    shelf = Shelf(gates={"b": threading.Event()})
    cache = shelf.cache(3)
    with cache.lease("a"):
        assert not cache.evict("a")
    assert not cache.evict("b")
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(use, cache, "b")
        until(lambda: shelf.loading, within_s=WAIT_S, what="b loads")
        assert not cache.evict("b")
        shelf.gates["b"].set()
        loading.result(WAIT_S)
    assert cache.evict("a")
    assert cache.resident == ("b",)
    assert shelf.log[-1] == "unload A"


def test_a_load_may_lease_another_model_even_one_that_a_waiting_thread_has_claimed() -> None:
    inside = threading.Event()
    claimed = threading.Event()
    cache: ModelCache[str]

    def load(name: str) -> str:
        if name == "pipeline":
            inside.set()
            assert claimed.wait(WAIT_S)
            with cache.lease("encoder") as encoder:
                return f"{name}+{encoder}"
        return name

    cache = ModelCache(OpaqueStore(load))
    with ThreadPoolExecutor(2) as pool:

        def lease(name: str) -> str:
            with cache.lease(name) as model:
                return model

        outer = pool.submit(lease, "pipeline")
        assert inside.wait(WAIT_S)
        other = pool.submit(lease, "encoder")  # it waits for the lock that the first load holds
        until(lambda: len(cache.residents()) == 2, within_s=WAIT_S, what="encoder claimed")
        claimed.set()
        assert outer.result(WAIT_S) == "pipeline+encoder"
        assert other.result(WAIT_S) == "encoder"


def test_a_load_that_leases_itself_is_told_so() -> None:
    cache: ModelCache[str]

    def load(name: str) -> str:
        with cache.lease(name) as model:
            return model

    cache = ModelCache(OpaqueStore(load))
    with pytest.raises(RuntimeError, match="'a' leases 'a'"), cache.lease("a"):
        pass
    assert cache.residents() == ()


def test_the_host_hears_of_every_change_with_no_lock_held() -> None:
    heard: list[tuple[tuple[str, str], ...]] = []
    cache: ModelCache[str]

    def changed() -> None:
        heard.append(tuple((r.name, r.state) for r in cache.residents()))

    cache = Shelf().cache(1, CacheHooks(changed=changed))
    use(cache, "a", "b")
    cache.evict("b")
    assert heard == [
        (("a", "loading"),),
        (("a", "ready"),),
        (("b", "loading"),),
        (("b", "ready"),),
        (),
    ]


def test_a_load_is_timed_and_so_is_the_wait_for_it() -> None:
    waits: list[float] = []

    def load(name: str) -> str:
        threading.Event().wait(0.05)
        return name

    cache = ModelCache(
        OpaqueStore(load), hooks=CacheHooks(leased=lambda _n, _v, load_s: waits.append(load_s))
    )
    with cache.lease("a"), cache.lease("a"):
        pass
    assert cache.residents()[0].load_s >= 0.05
    assert waits[0] >= 0.05
    assert waits[1] == 0.0


def test_a_name_that_does_not_pass_the_check_costs_no_model() -> None:
    shelf = Shelf()

    def check(name: str) -> None:
        if name == "wrong":
            raise KeyError(name)

    cache = ModelCache(OpaqueStore(shelf.load, check=check), policy=CachePolicy(models_max=2))
    use(cache, "a", "b")
    with pytest.raises(KeyError):
        cache.load("wrong", evict=("a",))
    with pytest.raises(KeyError), cache.lease("wrong"):
        pass
    assert set(cache.resident) == {"a", "b"}
    assert shelf.log == ["load a", "load b"]
    assert cache.load("c", evict=("a",)) > 0
    assert cache.load("c") == 0
    assert set(cache.resident) == {"b", "c"}
