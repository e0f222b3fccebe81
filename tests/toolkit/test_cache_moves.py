"""A cache over a store that counts bytes: what moves, when, and what is said when nothing can."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import psutil
import pytest

from falctl.core.activations import Drawing
from falctl.core.residency import Part, Room
from falctl.errors import FilesChangedError, ModelTooLargeError, NotFoundError
from falctl.toolkit import ModelCache, RequestCancelled
from falctl.toolkit.cache_entry import Load
from falctl.toolkit.cache_hooks import Admitted, CacheHooks, CachePolicy, OutOfMemory
from falctl.toolkit.moving import LOADING
from falctl.toolkit.opaque_store import OpaqueStore
from tests.toolkit.counted_store import CountedStore, Model, OutOfMemoryError
from tests.wait import until

WAIT_S = 60.0
SIZES = {
    "a": {"a.text": 20, "a.unet": 50},
    "b": {"b.text": 10, "b.unet": 40},
    "c": {"c.unet": 30, "shared": 5},
    "d": {"d.unet": 30, "shared": 5},
    "huge": {"huge.unet": 900},
}
ONCE = frozenset({"a.text", "b.text"})


def store_of(total_bytes: int = 100, **facts: Any) -> CountedStore:
    return CountedStore(SIZES, total_bytes, once=ONCE, **facts)


def cache_of(store: CountedStore, verdicts: list[str] | None = None, **policy: Any) -> ModelCache[Model]:
    noted = [] if verdicts is None else verdicts
    hooks = CacheHooks(leased=lambda _name, verdict, _s: noted.append(verdict))
    return ModelCache(store, policy=CachePolicy(**policy), hooks=hooks)


def use(cache: ModelCache[Model], *names: str, drawing: Drawing | None = None) -> None:
    for name in names:
        with cache.lease(name, drawing) as model:
            assert model.ready


def tiers(cache: ModelCache[Model]) -> dict[str, str]:
    return {r.name: r.tier for r in cache.residents()}


# From tier to tier


def test_a_lease_says_from_where_its_model_came_and_constructs_it_once() -> None:
    store, verdicts = store_of(), list[str]()
    cache = cache_of(store, verdicts)
    use(cache, "a", "a")
    assert cache.evict("a")
    use(cache, "a")
    assert cache.evict("a", tier="ram")
    assert tiers(cache) == {"a": "disk"}
    use(cache, "a")
    assert cache.evict("a", tier="disk")
    assert cache.residents() == ()
    assert store.parts() == {}
    use(cache, "a")
    assert verdicts == ["disk", "hit", "ram", "disk", "disk"]
    assert store.moves["construct a"] == 2


def test_a_load_into_host_memory_takes_nothing_of_the_device() -> None:
    store, verdicts = store_of(), list[str]()
    cache = cache_of(store, verdicts)
    assert cache.load("a", "ram") > 0
    assert cache.load("a", "ram") == 0
    assert (tiers(cache), cache.resident, store.used_bytes) == ({"a": "ram"}, (), 0)
    assert not cache.evict("a"), "it is not on the device"
    use(cache, "a")
    assert verdicts == ["ram"]
    assert cache.load("a", "ram") == 0, "what is on the device need not be read"


def test_what_is_forgotten_or_evicted_must_be_there_and_idle() -> None:
    cache = cache_of(store_of())
    for tier in ("vram", "ram", "disk"):
        assert not cache.evict("a", tier)
    with cache.lease("a"):
        assert not cache.evict("a", "disk")


# Making room


def test_no_more_leaves_than_must_and_what_is_used_once_in_a_job_goes_first() -> None:
    store = store_of(total_bytes=150)
    cache = cache_of(store)
    use(cache, "a", "a", "b")
    use(cache, "a")
    use(cache, "c", drawing=Drawing(5, 1))  # 120 of 130 are taken, 40 are wanted
    gone = [line for line in store.log if line.startswith("evict")]
    assert gone in (["evict a.text"], ["evict b.text"]), "which of the two has taken longer to load is chance"
    assert store.used_bytes <= 150
    assert "c" in cache.resident


def test_a_model_of_which_a_part_has_left_comes_back_by_that_part_alone() -> None:
    store, verdicts = store_of(total_bytes=100), list[str]()
    cache = cache_of(store, verdicts)
    use(cache, "a")
    use(cache, "c", drawing=Drawing(5, 2))  # 70 + 35 + 10: a.text must go
    assert [line for line in store.log if line.startswith("evict")] == ["evict a.text"]
    assert (cache.resident, tiers(cache)["a"]) == (("c",), "ram")
    store.total_bytes = 200
    use(cache, "a")
    assert verdicts == ["disk", "disk", "ram"]
    assert (store.moves["place a.text"], store.moves["place a.unet"]) == (2, 1)


def test_a_shared_part_is_there_once_and_stays_as_long_as_one_of_its_models_does() -> None:
    store = store_of()
    cache = cache_of(store)
    with cache.lease("c"):
        use(cache, "d")
        assert store.used_bytes == 65
        assert cache.evict("d")
        assert store.used_bytes == 35
    assert cache.evict("c")
    assert store.used_bytes == 0
    assert store.moves["place shared"] == 1


def test_a_model_that_shares_all_it_has_can_leave_without_taking_anything_along() -> None:
    store = CountedStore({"d": {"unet": 3, "vae": 1}, "e": {"unet": 3}})
    cache = cache_of(store, models_max=2)
    use(cache, "e", "d")
    assert cache.evict("e")
    assert (cache.resident, store.used_bytes) == (("d",), 4)
    assert not cache.evict("e")
    use(cache, "d")
    assert cache.evict("d")
    assert cache.evict("d", "ram"), "the rest of it"
    assert store.used_host_bytes == 3, "what the other has stays in host memory"
    assert cache.evict("e", "ram")
    assert store.used_host_bytes == 0


def test_a_drawing_has_room_made_for_it_beside_a_model_that_is_there() -> None:
    store, verdicts = store_of(), list[str]()
    cache = cache_of(store, verdicts)
    use(cache, "b", "c")
    use(cache, "b", drawing=Drawing(10, 2))
    assert (cache.resident, verdicts[-1]) == (("b",), "hit")
    assert store.free_bytes >= 20


def test_what_can_never_fit_is_refused_with_numbers_before_anything_is_read_or_leaves() -> None:
    store = store_of()
    cache = cache_of(store)
    use(cache, "a")
    with pytest.raises(ModelTooLargeError, match=r"'huge' has no room: it needs .* can have") as refused:
        use(cache, "huge")
    assert (refused.value.status, refused.value.error_type) == (507, "model_too_large")
    assert cache.resident == ("a",)
    assert "construct huge" not in store.log
    with pytest.raises(ModelTooLargeError):
        use(cache, "a", drawing=Drawing(100, 100))
    assert cache.residents()[0].leases == 0


def test_whom_the_router_names_leaves_first_and_only_as_far_as_must_be() -> None:
    store = store_of(total_bytes=120)
    cache = cache_of(store)
    use(cache, "b", "c")
    for _ in range(9):
        use(cache, "b")
    cache.load("d", evict=("b", "c"))
    assert not [line for line in store.log if line.startswith("evict")], "there is room for all three"
    cache.load("a", evict=("b",))
    assert "b" not in cache.resident
    assert store.parts()["b.unet"].tier == "ram"


def test_some_of_the_device_can_be_reserved() -> None:
    reserve = 0
    store = store_of()
    cache = cache_of(store, reserve_bytes=lambda: reserve)
    use(cache, "b", "c")
    reserve = 60
    use(cache, "c", drawing=Drawing(1, 1))
    assert store.free_bytes >= 60
    with pytest.raises(ModelTooLargeError):
        use(cache, "a")


def test_idle_models_give_way_to_others_and_leased_or_pinned_ones_do_not() -> None:
    store = store_of(total_bytes=1000)
    cache = cache_of(store)
    cache.pin("c")
    use(cache, "a", "b", "c")
    assert not cache.give_way(0)
    assert cache.give_way(9)
    assert store.used_bytes in (70 + 40 + 35, 50 + 50 + 35), "one text encoder has left"
    with cache.lease("a"):
        assert cache.give_way(500)
        assert cache.resident == ("a", "c")
        assert not cache.give_way(500)


def test_a_bound_on_the_number_of_models_holds_beside_bytes() -> None:
    store = store_of(total_bytes=10_000)
    cache = cache_of(store, models_max=2)
    use(cache, "a", "c", "d", "c")
    assert cache.resident == ("c", "d")
    assert tiers(cache)["a"] == "ram"
    use(cache, "b")
    assert cache.resident == ("b", "c")
    assert store.parts()["shared"].tier == "vram"


# Pins


def test_a_pinned_model_stays_however_little_it_is_worth() -> None:
    store = store_of()
    cache = cache_of(store)
    cache.pin("c")
    assert (cache.residents(), cache.pinned) == ((), ("c",))
    use(cache, "c", "b")
    assert cache.residents()[1].pinned
    assert not cache.evict("c")
    with pytest.raises(ModelTooLargeError, match=r"pinned: c \("):
        use(cache, "a")
    assert cache.unpin("c")
    assert not cache.unpin("c")
    use(cache, "a")
    assert cache.resident == ("a",)


def test_pins_that_leave_no_room_are_refused_by_name() -> None:
    cache = cache_of(store_of())
    cache.pin("c")
    cache.pin("d")
    with pytest.raises(ModelTooLargeError, match="the pinned models a, c, d need"):
        cache.pin("a")
    assert cache.pinned == ("c", "d")
    with pytest.raises(NotFoundError):
        cache.pin("nonsense")


def test_pins_leave_no_place_where_models_are_counted() -> None:
    cache = cache_of(store_of(), models_max=1)
    cache.pin("c")
    with pytest.raises(ModelTooLargeError, match="more than may be loaded"):
        cache.pin("d")
    use(cache, "d", "c")
    with pytest.raises(ModelTooLargeError, match="these are pinned: c"):
        use(cache, "d")
    assert cache.resident == ("c",)


# Out of memory


def test_a_device_that_is_fuller_than_it_said_gets_everything_idle_off_it_and_one_more_try() -> None:
    store = store_of(lies=True)
    cache = cache_of(store)
    use(cache, "c")
    store.taken_bytes = 40
    use(cache, "b")
    assert (cache.resident, tiers(cache)) == (("b",), {"b": "vram", "c": "ram"})


def test_the_second_time_it_is_the_507_with_the_numbers_and_the_cache_is_as_good_as_before() -> None:
    store = store_of(lies=True, taken_bytes=60)
    cache = cache_of(store)
    with pytest.raises(ModelTooLargeError, match="it ran out of memory although everything idle had left"):
        use(cache, "b")
    assert [(r.name, r.tier, r.leases) for r in cache.residents()] == [("b", "ram", 0)]
    store.taken_bytes = 0
    use(cache, "b")
    assert cache.evict("b")
    assert store.used_bytes == 0


def test_a_construction_that_runs_out_of_memory_is_tried_again_once_the_device_is_empty() -> None:
    store = store_of(broken={"construct b": OutOfMemoryError()})
    cache = cache_of(store)
    with pytest.raises(OutOfMemoryError):
        use(cache, "b")
    store.broken = {"construct b": OutOfMemoryError()}
    use(cache, "c", "b")
    assert cache.resident == ("b",)


def test_any_other_error_of_a_move_is_told_and_nothing_is_tried_again() -> None:
    for move in ("construct", "fill", "place"):
        store = store_of(broken={f"{move} b": OSError(move)})
        cache = cache_of(store)
        use(cache, "c")
        with pytest.raises(OSError, match=move):
            use(cache, "b")
        assert cache.resident == ("c",)
        use(cache, "b")


def test_a_call_that_runs_out_of_memory_is_called_again_with_everything_idle_off_the_device() -> None:
    store = store_of()
    facts: list[OutOfMemory] = []
    frames: list[weakref.ref[Any]] = []

    def recover(oom: OutOfMemory) -> Literal["retry", "raise"]:
        facts.append(oom)
        gc.collect()
        assert frames[-1]() is None, "the error still holds what the call had allocated"
        assert cache.residents()[0].leases == 0
        return "retry"

    def call(model: Model) -> str:
        latents = threading.Event()  # stands for a tensor
        frames.append(weakref.ref(latents))
        return model.draw(45)

    cache = cache_of(store, recover=recover)
    use(cache, "c")
    assert cache.run("b", call) == "B"
    assert cache.resident == ("b",)
    assert facts == [OutOfMemory("b", None, 1, "tried to allocate 45 bytes")]


def test_a_call_that_cannot_have_its_memory_ends_as_the_507() -> None:
    cache = cache_of(store_of())
    with pytest.raises(ModelTooLargeError, match=r"ran out of memory \(tried to allocate 70 bytes\)"):
        cache.run("b", lambda model: model.draw(70))
    assert (cache.resident, cache.residents()[0].leases) == (("b",), 0)


def test_what_a_call_raises_otherwise_goes_up_at_once() -> None:
    calls = []

    def call(model: Model) -> None:
        calls.append(model)
        raise KeyError

    with pytest.raises(KeyError):
        cache_of(store_of()).run("b", call)
    assert len(calls) == 1


# Host memory


def test_a_full_host_memory_lets_go_of_idle_parts_first_those_that_are_not_on_the_device() -> None:
    store = store_of(host_bytes=110, total_bytes=200)
    cache = cache_of(store)
    use(cache, "b", "c")
    cache.evict("b")
    use(cache, "a")
    assert store.parts()["b.unet"].tier == "disk"
    assert store.used_host_bytes <= 110
    assert all(store.parts()[key].host for key in ("c.unet", "shared", "a.unet", "a.text"))
    use(cache, "b")
    assert set(cache.resident) == {"a", "b", "c"}, "only copies of what is on the device went"
    assert store.used_host_bytes <= 110
    with cache.lease("b"):
        cache.evict("a")
        use(cache, "a")
    assert store.used_host_bytes <= 110


def test_what_has_no_room_in_host_memory_passes_through_to_the_device() -> None:
    store = store_of(host_bytes=37)
    cache = cache_of(store)
    with cache.lease("c"):
        use(cache, "b")
        assert not store.parts()["b.unet"].host
        with pytest.raises(ModelTooLargeError, match="'a' has no room in host memory: no 20 bytes"):
            cache.load("a", "ram")
    cache.evict("b")
    assert tiers(cache)["b"] == "disk"
    assert {r.leases for r in cache.residents()} == {0}


# How a model runs is up to whoever knows it


class Admission:
    """Lets a model run whole where it fits, else staged."""

    def __init__(self, store: CountedStore) -> None:
        self.store = store

    def __call__(self, name: str, drawing: Drawing | None, room: Room) -> Admitted:
        size = sum(p.nbytes for p in self.store.needs(name)) + self.store.peak_bytes(name, drawing)
        if size <= room.most_bytes:
            return Admitted("whole", size)
        return Admitted("staged", min(size, room.most_bytes))


def test_a_model_is_placed_as_admission_says_and_anew_when_it_says_otherwise() -> None:
    store, verdicts = store_of(), list[str]()
    cache = cache_of(store, verdicts, admit=Admission(store))
    use(cache, "b")
    assert store.hows == {"b": "whole"}
    use(cache, "b", drawing=Drawing(10, 8))
    assert store.hows == {"b": "staged"}
    use(cache, "b", drawing=Drawing(10, 8))
    assert verdicts == ["disk", "ram", "hit"]
    with cache.lease("b"):
        assert store.hows == {"b": "whole"}
        use(cache, "b", drawing=Drawing(10, 8))
        assert store.hows == {"b": "whole"}, "whoever else uses it wants it to stay as it is"


# Idle models


def test_a_model_that_may_not_idle_leaves_when_its_last_lease_ends() -> None:
    store = store_of()
    cache = cache_of(store, keep_alive_s=lambda name: 0.0 if name == "c" else -1.0)
    use(cache, "b")
    with cache.lease("c"):
        use(cache, "c")
        assert set(cache.resident) == {"c", "b"}
    assert tiers(cache) == {"c": "disk", "b": "vram"}
    assert cache.due_at() is None


def test_an_idle_model_leaves_the_device_and_then_host_memory_when_it_is_tended() -> None:
    store = store_of()
    cache = cache_of(store, keep_alive_s=lambda _name: 0.05)
    use(cache, "c")
    assert cache.residents()[0].keep_until == cache.due_at()
    seen: list[str] = []

    def tended() -> bool:
        cache.tend()
        seen.append(tiers(cache)["c"])
        return seen[-1] == "disk"

    until(tended, within_s=WAIT_S, what="it is on the disk only")
    assert store.used_host_bytes == 0
    assert cache.tend() is None


def test_what_no_file_brings_back_leaves_host_memory_with_all_of_its_model_when_that_is_to_go() -> None:
    store = store_of(stuck=frozenset({"c.unet"}))
    cache = cache_of(store)
    for tier in ("vram", "ram"):
        use(cache, "c")
        assert cache.evict("c", tier)
        assert tiers(cache) == ({"c": "ram"} if tier == "vram" else {}), "off the device it is kept"
    assert store.used_host_bytes == 0
    assert not cache.evict("c", "ram")
    use(cache, "c")
    assert store.moves["construct c"] == 2


def test_what_no_file_brings_back_does_not_idle_in_host_memory_for_ever() -> None:
    store = store_of(stuck=frozenset({"c.unet"}))
    cache = cache_of(store, keep_alive_s=lambda _name: 0.0)
    use(cache, "c")
    cache.tend()
    assert (tiers(cache), store.used_host_bytes, cache.due_at()) == ({}, 0, None)


def test_the_last_lease_says_for_how_long() -> None:
    keep_s = 3600.0
    cache = cache_of(store_of(), keep_alive_s=lambda _name: keep_s)
    use(cache, "c")
    first = cache.due_at()
    keep_s = -1.0
    use(cache, "c")
    assert first is not None
    assert cache.due_at() is None


def test_a_pinned_model_idles_for_ever() -> None:
    cache = cache_of(store_of(), keep_alive_s=lambda _name: 0.0)
    cache.pin("c")
    use(cache, "c")
    assert tiers(cache) == {"c": "vram"}
    cache.unpin("c")
    cache.tend()
    assert tiers(cache) == {"c": "disk"}


# Beside each other


def test_bytes_are_read_beside_a_construction_and_whoever_wants_them_waits_for_that() -> None:
    store = store_of(gates={"fill a": threading.Event()})
    cache = cache_of(store)
    cache.load("c", "ram")
    store.gates = {}
    cache.load("a", "ram")
    cache.evict("a", tier="ram")
    assert cache.may_overlap("a", tier="ram")
    assert not cache.may_overlap("a")
    assert not cache.may_overlap("b", tier="ram"), "it must be constructed"
    gate = store.gates["fill a"] = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        with LOADING:  # as one who constructs does
            reading = pool.submit(cache.load, "a", "ram")
            until(lambda: cache.residents()[0].state == "loading", within_s=WAIT_S, what="a is read")
            leasing = pool.submit(use, cache, "a")
            until(lambda: cache.residents()[0].leases == 2, within_s=WAIT_S, what="the lease waits")
            gate.set()
            assert reading.result(WAIT_S) > 0
        leasing.result(WAIT_S)
    assert store.moves["fill a.unet"] == 2


def test_what_leaves_and_what_comes_take_turns() -> None:
    store = store_of()
    cache = cache_of(store)
    use(cache, "b")
    gate = store.gates["evict b.text"] = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        leaving = pool.submit(cache.evict, "b")
        until(lambda: cache.resident == (), within_s=WAIT_S, what="b is on its way")
        coming = pool.submit(use, cache, "c")
        until(lambda: len(cache.residents()) == 2, within_s=WAIT_S, what="c waits for its turn")
        gate.set()
        assert leaving.result(WAIT_S)
        coming.result(WAIT_S)


def test_a_model_that_loads_is_not_forgotten_when_another_is() -> None:
    store = store_of()
    cache = cache_of(store)
    use(cache, "c")
    gate = store.gates["construct b"] = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(use, cache, "b")
        until(lambda: store.busy == "construct b", within_s=WAIT_S, what="b is constructed")
        use(cache, "c")
        assert [r.name for r in cache.residents()] == ["c", "b"]
        gate.set()
        loading.result(WAIT_S)
    assert set(cache.resident) == {"b", "c"}


def test_a_load_that_leases_what_another_thread_reads_waits_for_that() -> None:
    store = store_of()
    inner = cache_of(store)
    inner.load("a", "ram")
    inner.evict("a", "ram")

    def load(name: str) -> str:
        with inner.lease(name) as model:
            return model.draw(1)

    outer = ModelCache(OpaqueStore(load))
    gate = store.gates["fill a"] = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        reading = pool.submit(inner.load, "a", "ram")
        until(lambda: inner.residents()[0].leases == 1, within_s=WAIT_S, what="a is read")
        leasing = pool.submit(outer.load, "a")
        until(lambda: inner.residents()[0].leases == 2, within_s=WAIT_S, what="the load waits for it")
        gate.set()
        assert reading.result(WAIT_S) > 0
        assert leasing.result(WAIT_S) > 0


def test_a_reading_that_is_cancelled_is_taken_up_by_the_lease_that_joined_it() -> None:
    store = store_of()
    stop = threading.Event()
    local = threading.local()
    hooks = CacheHooks(cancelled=lambda: getattr(local, "stop", threading.Event()))
    cache = ModelCache(store, hooks=hooks)
    cache.load("a", "ram")
    cache.evict("a", "ram")
    gate = store.gates["fill a"] = threading.Event()

    def cancelled_load() -> None:
        local.stop = stop
        cache.load("a", "ram")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cancelled_load)
        until(lambda: cache.residents()[0].leases == 1, within_s=WAIT_S, what="the first reads")
        second = pool.submit(use, cache, "a")
        until(lambda: cache.residents()[0].leases == 2, within_s=WAIT_S, what="the second waits")
        stop.set()
        gate.set()
        with pytest.raises(RequestCancelled):
            first.result(WAIT_S)
        second.result(WAIT_S)
    assert cache.resident == ("a",)
    assert cache.residents()[0].leases == 0


def test_a_model_whose_files_were_replaced_is_made_anew_while_who_has_the_old_one_keeps_it() -> None:
    store = store_of()
    cache = cache_of(store)
    with cache.lease("b") as old:
        store.models = {**SIZES, "b": {"b.new": 33}}
        with cache.lease("b") as new:
            assert (old.version, new.version) == (1, 2)
            assert new.ready
    assert cache.residents()[0].device_bytes == 33
    assert cache.residents()[0].leases == 0


def test_everybody_can_see_where_a_model_is_and_how_far_its_load_has_come() -> None:
    store = store_of(gates={"place b": threading.Event()})
    cache = cache_of(store)
    use(cache, "c")
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(use, cache, "b")
        until(lambda: store.busy == "place b", within_s=WAIT_S, what="b is on its way")
        seen = cache.residents()[0]
        assert (seen.name, seen.state, seen.tier, seen.loaded) == ("b", "loading", "disk", 0.0)
        assert (seen.device_bytes, seen.host_bytes, seen.leases) == (0, 0, 1)
        store.moved_bytes = {"b.unet": 60}
        assert cache.residents()[0].loaded == 0.6, "40 of 50 bytes were read and 20 of 50 copied"
        store.moved_bytes = {}
        assert cache.residents()[0].loaded == 0.6, "what is begun anew counts when it is further than it was"
        store.gates["place b"].set()
        loading.result(WAIT_S)
    seen = cache.residents()[0]
    assert (seen.state, seen.tier, seen.loaded, seen.device_bytes) == ("ready", "vram", None, 50)
    assert seen.load_s > 0


def share(load: Load, *parts: Part, **moved: int) -> float | None:
    return load.share(parts, moved)


def test_of_a_load_those_bytes_count_that_it_has_to_move() -> None:
    disk, ram, there = Part("disk", 10, "disk"), Part("ram", 10, "ram"), Part("vram", 10, "vram")
    load = Load("vram", "disk", begun={"disk": "disk", "ram": "ram", "vram": "vram"})
    assert share(load, disk, ram, there) == 0.0
    assert share(load, disk, ram, there, disk=15) == 0.5
    assert share(load, replace(disk, tier="ram"), ram, there) == 0.5, "never less than before"
    assert share(load, replace(disk, tier="vram"), ram, there) == pytest.approx(2 / 3)
    assert share(load, replace(disk, tier="vram"), replace(ram, tier="vram"), there) == 1.0
    to_ram = Load("ram", "disk", begun={"ram": "ram", "vram": "vram"})
    assert share(to_ram, disk, ram, there, disk=7) == 0.7
    assert share(to_ram, disk, ram, there, disk=99) == 1.0
    assert share(Load("ram", "ram", begun={"ram": "ram"}), ram) is None, "it moves nothing"


def test_what_comes_to_the_device_only_while_it_runs_is_no_part_of_a_load() -> None:
    load = Load("vram", "disk", how="staged")
    assert share(load, Part("unet", 10, "disk"), unet=5) == 0.5
    assert share(load, Part("unet", 10, "ram")) == 1.0


def test_how_a_model_is_to_run_is_known_when_its_load_is_looked_at() -> None:
    store = store_of(gates={"place b": threading.Event()})
    cache = cache_of(store, admit=lambda _name, _drawing, _room: Admitted("staged", 50))
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(use, cache, "b")
        until(lambda: store.busy == "place b", within_s=WAIT_S, what="b is placed")
        assert (store.used_host_bytes, cache.residents()[0].loaded) == (50, 1.0)
        store.gates["place b"].set()
        loading.result(WAIT_S)


# Nobody waits for what nobody wants


class Wanted:
    """A cache, and for each thread whether the request that it works for was cancelled."""

    def __init__(self, store: CountedStore) -> None:
        self.local = threading.local()
        hooks = CacheHooks(cancelled=lambda: getattr(self.local, "stop", threading.Event()))
        self.cache = ModelCache(store, hooks=hooks)

    def load(self, name: str, tier: Literal["vram", "ram"], stop: threading.Event) -> None:
        self.local.stop = stop
        self.cache.load(name, tier)


@pytest.mark.parametrize("joined", [True, False])
def test_who_waits_for_its_turn_to_load_stops_when_it_is_cancelled(*, joined: bool) -> None:
    store, stop = store_of(), threading.Event()
    wanted = Wanted(store)
    cache = wanted.cache
    with ThreadPoolExecutor(2) as pool:
        with LOADING:
            first = pool.submit(wanted.load, "a", "vram", stop)
            until(lambda: len(cache.residents()) == 1, within_s=WAIT_S, what="the first waits for its turn")
            if joined:
                second = pool.submit(use, cache, "a")
                until(lambda: cache.residents()[0].leases == 2, within_s=WAIT_S, what="the second joins it")
            stop.set()
            with pytest.raises(RequestCancelled):
                first.result(WAIT_S)
        if joined:
            second.result(WAIT_S)
    assert store.moves["construct a"] == int(joined), "who joined it has loaded it"
    use(cache, "a")
    assert cache.residents()[0].leases == 0


@pytest.mark.parametrize("step", ["construct a", "place a", "fill a"])
def test_a_load_that_is_cancelled_at_any_step_raises_that_and_the_next_one_works(step: str) -> None:
    store, stop = store_of(), threading.Event()
    wanted = Wanted(store)
    gate = store.gates[step] = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(wanted.load, "a", "vram", stop)
        until(lambda: store.waiting == step, within_s=WAIT_S, what=f"it is at {step}")
        stop.set()
        gate.set()
        with pytest.raises(RequestCancelled):
            loading.result(WAIT_S)
    assert (wanted.cache.resident, store.used_bytes) == ((), 0)
    use(wanted.cache, "a")


def test_who_waits_to_have_others_leave_host_memory_stops_when_it_is_cancelled() -> None:
    store, stop = store_of(host_bytes=70), threading.Event()
    wanted = Wanted(store)
    cache = wanted.cache
    for name in ("a", "b"):
        cache.load(name, "ram")
    assert tiers(cache) == {"a": "disk", "b": "ram"}
    gate = store.gates["fill a"] = threading.Event()
    with ThreadPoolExecutor(1) as pool, LOADING:
        loading = pool.submit(wanted.load, "a", "ram", stop)
        until(lambda: store.waiting == "fill a", within_s=WAIT_S, what="it reads")
        store.gates = {}
        gate.set()
        until(lambda: store.refused == 2, within_s=WAIT_S, what="it has no room, and waits for its turn")
        stop.set()
        with pytest.raises(RequestCancelled):
            loading.result(WAIT_S)
    assert tiers(cache) == {"a": "disk", "b": "ram"}
    cache.load("a", "ram")


def test_a_model_store_takes_no_objects() -> None:
    cache = cache_of(store_of())
    with pytest.raises(TypeError, match="loads its models itself"):
        cache["a"] = "pipeline"  # type: ignore[assignment]
    assert cache.loads


def test_a_model_whose_files_were_replaced_has_the_room_of_what_it_was() -> None:
    store = store_of(total_bytes=100)
    cache = cache_of(store)
    use(cache, "a")  # 70 bytes
    store.models = {**SIZES, "a": {"a.text": 20, "a.new": 60}}
    use(cache, "a")
    assert store.moves["place a.text"] == 1, "it is the same as before"
    assert [line for line in store.log if line.startswith("evict")] == ["evict a.unet"]
    assert cache.residents()[0].device_bytes == store.used_bytes == 80


def test_what_a_replaced_model_was_stays_for_those_who_use_it() -> None:
    store = store_of(total_bytes=100)
    cache = cache_of(store)
    with cache.lease("b") as old:
        store.models = {**SIZES, "b": {"b.new": 20}}
        store.broken["construct b"] = ValueError("half a file")
        with pytest.raises(ValueError, match="half"):
            use(cache, "b")
        assert old.ready
    use(cache, "c", "d")
    store.models = {**SIZES, "c": {"c.new": 10}}
    use(cache, "c")
    assert "evict shared" not in store.log, "d has it, too"
    assert "evict c.unet" in store.log


@pytest.mark.parametrize("leased", [False, True])
@pytest.mark.parametrize("sizes", [{"a.new": 400}, {"a.broken": 10}])
def test_a_model_whose_new_files_make_none_is_still_known_by_what_it_holds(
    sizes: dict[str, int], *, leased: bool
) -> None:
    store = store_of(total_bytes=100)
    cache = cache_of(store)
    with cache.lease("a") if leased else nullcontext():
        if not leased:
            use(cache, "a")
        store.models = {**SIZES, "a": sizes}
        store.broken["construct a"] = ValueError("half a file")
        with pytest.raises(ModelTooLargeError if "a.new" in sizes else ValueError):
            use(cache, "a")
    use(cache, "b", drawing=Drawing(5, 10))
    assert cache.resident == ("b",)
    assert store.used_bytes <= 50
    assert cache.evict("a", "disk")
    assert cache.evict("b", "disk")
    assert store.parts() == {}


def test_a_model_that_is_placed_anew_needs_no_second_place_and_is_not_there_if_that_fails() -> None:
    def admit(_name: str, drawing: Drawing | None, _room: Room) -> Admitted:
        return Admitted("whole" if drawing is None else "staged", 50)

    store = store_of(total_bytes=200)
    cache = cache_of(store, admit=admit, models_max=2)
    use(cache, "c", "b")
    store.broken["place b"] = ValueError("no")
    with pytest.raises(ValueError, match="no"), cache.lease("b", Drawing(1, 1)):
        pass
    assert cache.resident == ("c",)
    use(cache, "b", drawing=Drawing(1, 1))
    assert cache.resident == ("b", "c")
    assert "evict c.unet" not in store.log


def test_parts_that_no_file_brings_back_keep_nobody_from_host_memory() -> None:
    store = store_of(host_bytes=90, stuck=frozenset({"c.unet"}))
    cache = cache_of(store)
    for name in ("c", "b"):
        assert cache.load(name, "ram") > 0
    use(cache, "b", "b", "b")  # dearer than c, which would leave first
    cache.evict("b")
    assert cache.load("d", "ram") > 0
    assert store.parts()["d.unet"].host


def test_a_policy_that_would_try_for_ever_is_not_asked_for_ever() -> None:
    cache, calls = cache_of(store_of(), recover=lambda _facts: "retry"), list[str]()

    def draw(model: Model) -> str:
        calls.append(model.name)
        raise OutOfMemoryError("never")

    with pytest.raises(ModelTooLargeError, match="ran out of memory"):
        cache.run("b", draw)
    assert len(calls) == 10


def test_a_load_into_host_memory_may_lease_what_waits_for_its_turn() -> None:
    entered, gate, stop = threading.Event(), threading.Event(), threading.Event()
    inner = ModelCache(store_of(), hooks=CacheHooks(cancelled=lambda: stop))

    def load(name: str) -> str:
        entered.set()
        assert gate.wait(WAIT_S)
        with inner.lease(name) as model:
            return model.draw(1)

    outer = ModelCache(OpaqueStore(load))
    with ThreadPoolExecutor(2) as pool:
        loading = pool.submit(outer.load, "a", "ram")
        assert entered.wait(WAIT_S)
        waiting = pool.submit(use, inner, "a")
        until(lambda: len(inner.residents()) == 1, within_s=WAIT_S, what="the other lease waits for its turn")
        gate.set()
        try:
            assert loading.result(WAIT_S) > 0
        finally:
            stop.set()  # or neither would ever end
        waiting.result(WAIT_S)


def test_an_unload_that_fails_while_a_model_is_put_leaves_that_name_free() -> None:
    def unload(model: str) -> None:
        raise ValueError(model)

    cache = ModelCache(OpaqueStore(unload=unload), policy=CachePolicy(models_max=1))
    cache["a"] = "A"
    with pytest.raises(ValueError, match="A"):
        cache["b"] = "B"
    assert cache.residents() == ()
    cache["b"] = "B"
    with cache.lease("b") as model:
        assert model == "B"
    assert cache.residents()[0].leases == 0


class Replaced(CountedStore):
    """The files of "a" are others while they are read for the first *times* times; nobody may construct unguarded."""

    times = 0
    fails = True
    """Whether the reader notices."""

    def fill(self, name: str, cancelled: threading.Event) -> None:
        if self.times == 0:
            return super().fill(name, cancelled)
        self.times -= 1
        self.models = {**SIZES, "a": {"a.text": 20, f"a.new{self.times}": 40}}
        if self.fails:
            raise FilesChangedError("replaced while it was read")
        return None

    def construct(self, name: str, cancelled: threading.Event | None = None) -> None:
        with ThreadPoolExecutor(1) as other:
            assert not other.submit(LOADING.acquire, blocking=False).result(WAIT_S), "nobody holds it"
        super().construct(name)


@pytest.mark.parametrize("fails", [True, False])
@pytest.mark.parametrize("tier", ["ram", "vram"])
def test_a_model_that_is_replaced_while_it_is_read_is_loaded_as_it_is_now(
    tier: Literal["ram", "vram"], fails: bool
) -> None:
    store = Replaced(SIZES, 100)
    cache = cache_of(store)
    use(cache, "a")
    assert cache.evict("a", "ram")
    store.times, store.fails = 1, fails or tier == "vram"
    cache.load("a", tier)
    assert {r.name: (r.tier, r.host_bytes, r.leases) for r in cache.residents()} == {"a": (tier, 60, 0)}
    use(cache, "a")
    assert store.moves["construct a"] == 2
    assert store.used_bytes == 60


def test_one_that_is_replaced_again_and_again_is_told() -> None:
    store = Replaced(SIZES, 100)
    cache = cache_of(store)
    store.times = 2
    with pytest.raises(FilesChangedError):
        use(cache, "a")
    assert cache.residents()[0].leases == 0
    use(cache, "a")


# Models without bytes


def test_of_models_whose_bytes_are_on_the_disk_only_those_used_last_are_remembered() -> None:
    sizes = {str(i): {f"{i}.unet": 10} for i in range(9)}
    store = CountedStore(sizes, 100, host_bytes=35)
    cache = cache_of(store, skeletons_max=3)
    cache.pin("0")
    cache.load("0", "ram")
    with cache.lease("1"):
        for name in sizes:
            cache.load(name, "ram")
        # 0 is pinned and 1 leased; of the others the host has room for the last.
        assert [r.name for r in cache.residents()] == ["8", "7", "6", "5", "1", "0"]
    assert store.moves["construct 2"] == store.moves["forget 2"] == 1
    cache.evict("8", "ram")
    assert "5" not in tiers(cache)
    cache.load("5", "ram")
    assert store.moves["construct 5"] == 2


class WithModules(CountedStore):
    """Makes objects such as a pipeline is made of."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.trees: dict[str, list[bytes]] = {}

    def construct(self, name: str, cancelled: threading.Event | None = None) -> None:
        super().construct(name, cancelled)
        self.trees[name] = [bytes(10_000) + name.encode() for _ in range(200)]

    def forget(self, name: str) -> None:
        super().forget(name)
        del self.trees[name]


def test_who_visits_hundreds_of_models_once_holds_no_more_than_who_visits_some() -> None:
    """Each has 2 MB of objects; unbounded it would be 600."""
    sizes = {str(i): {f"{i}.unet": 10} for i in range(300)}
    store = WithModules(sizes, 15, host_bytes=15)
    cache = cache_of(store, skeletons_max=8)
    rss = []
    for i, name in enumerate(sizes):
        use(cache, name)
        if i % 50 == 49:
            gc.collect()
            rss.append(psutil.Process().memory_info().rss)
    assert len(store.trees) <= 10
    assert len(cache.residents()) <= 10
    assert max(rss) - rss[0] < 60 << 20
