"""Loads of real pipelines that are cancelled at each of their steps in turn: nothing is held, and the next one draws the same."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from falctl.core.activations import Drawing
from falctl.host.cache import loading, pipeline_store, stopping
from falctl.host.cache.device import CpuDevice
from falctl.host.cache.pipeline_store import PipelineStore
from falctl.host.cache.private_memory import PrivateMemory
from falctl.host.cache.stopping import LoadCancelledError
from falctl.toolkit import ModelCache, RequestCancelled
from falctl.toolkit.cache_hooks import CacheHooks
from tests.host.cache.pipes import SIDE, loaded, picture
from tests.host.cache.stores import FolderOf, bring, leave, store_of, tiers
from tests.host.cache.test_refill import HookedDevice, HookedMemory, Steps

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"  # diffusers' schedulers
)

NAME = "sd15"
SMALL = Drawing(SIDE, SIDE)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """Return what hears of every call that makes a module, asks for memory, packs, reads or copies."""
    found = Steps()

    def telling(step: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def told(*args: Any, **options: Any) -> Any:
            found(step)
            return call(*args, **options)

        return told

    for name in ("load_component", "load_pipeline"):
        monkeypatch.setattr(pipeline_store, name, telling(name, getattr(loading, name)))
    monkeypatch.setattr(os, "preadv", telling("read", os.preadv))
    return found


def world(folder_of: FolderOf, steps: Steps) -> tuple[PipelineStore, HookedDevice, HookedMemory]:
    device, memory = HookedDevice(1 << 30, steps), HookedMemory(steps)
    return store_of(folder_of, device=device, memory=memory), device, memory


def test_a_construction_that_is_cancelled_ends_between_two_components_and_leaves_none(
    folder_of: FolderOf, steps: Steps
) -> None:
    store, device, memory = world(folder_of, steps)
    store.construct(NAME)
    points = [(step, n + 1) for step in set(steps.log) for n in range(steps.log.count(step))]
    assert {step for step, _ in points} == {"load_component", "obtain", "load_pipeline"}
    assert len(points) == 7, "three components, and what they belong to"
    store.forget(NAME)
    for step, number in points:
        cancelled = threading.Event()
        steps.at(step, number, cancelled.set)
        if step == "load_pipeline":
            store.construct(NAME, cancelled)  # the last step: there is nothing to be spared any more
            store.forget(NAME)
        else:
            with pytest.raises(LoadCancelledError):
                store.construct(NAME, cancelled)
            assert "load_pipeline" not in steps.log
            assert steps.log.count("load_component") == number, "the next one was not begun"
        assert (dict(store.parts()), dict(store.moved()), memory.used_bytes) == ({}, {}, 0)
        assert not store.is_constructed(NAME)
    assert torch.get_default_dtype() == torch.float32
    steps.at("", 0, lambda: None)
    assert picture(bring(store, NAME)) == picture(loaded(folder_of(NAME)))
    assert device.used_bytes == memory.used_bytes > 0


@pytest.mark.parametrize("filling", [True, False])
def test_a_model_from_the_disk_that_is_cancelled_anywhere_draws_the_same_the_next_time(
    folder_of: FolderOf, steps: Steps, *, filling: bool
) -> None:
    store, device, memory = world(folder_of, steps)
    first = picture(bring(store, NAME))
    leave(store, NAME, drop=True)
    steps.log.clear()
    store.place(NAME, filling=filling)
    leave(store, NAME, drop=True)
    kinds = set(steps.log)
    assert kinds == {"allocate", "read", "copy", "finish"} | ({"obtain"} if filling else set())
    for step in sorted(kinds):
        cancelled = threading.Event()
        steps.at(step, steps.log.count(step) // 2 + 1, cancelled.set)  # amidst of the second component or so
        with pytest.raises(LoadCancelledError):
            store.place(NAME, filling=filling, cancelled=cancelled)
        there = [part for part in store.parts().values() if part.tier == "vram"]
        assert device.used_bytes == sum(part.nbytes for part in there), (
            "whole components stay, to be used or evicted"
        )
        assert memory.used_bytes == sum(part.nbytes for part in there if part.host)
        leave(store, NAME, drop=True)
        assert (device.used_bytes, memory.used_bytes, tiers(store, NAME)) == (0, 0, {"disk"})
    assert picture(store.place(NAME, filling=filling)) == first


def test_a_request_that_is_cancelled_while_its_model_is_read_gives_it_up_and_the_next_one_has_it(
    folder_of: FolderOf, steps: Steps
) -> None:
    store, device, _ = world(folder_of, steps)
    local = threading.local()
    hooks = CacheHooks(cancelled=lambda: getattr(local, "stop", threading.Event()))
    cache = ModelCache(store, hooks=hooks)
    first = cache.run(NAME, picture, SMALL)
    assert cache.evict(NAME, "ram")
    local.stop = threading.Event()
    steps.at("copy", 2, local.stop.set)
    with pytest.raises(RequestCancelled):
        cache.run(NAME, picture, SMALL)
    assert (cache.resident, [resident.leases for resident in cache.residents()]) == ((), [0])
    local.stop = threading.Event()
    assert cache.run(NAME, picture, SMALL) == first
    assert device.used_bytes == cache.residents()[0].device_bytes


def test_a_model_that_is_made_is_seen_to_come_byte_by_byte(
    folder_of: FolderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, seen = store_of(folder_of), list[float]()
    cache = ModelCache(store)

    class Told(stopping.Move):
        def count(self, nbytes: int) -> None:
            super().count(nbytes)
            seen.append(cache.residents()[0].loaded or 0.0)

    monkeypatch.setattr(pipeline_store, "Move", Told)
    monkeypatch.setattr("falctl.host.cache.components.Move", Told)
    cache.load(NAME)
    assert seen == sorted(seen)
    assert len(set(seen)) > 20, "not component by component"
    assert 0.0 < seen[0] < 0.1
    assert 0.45 < seen[-1] <= 0.5, "all was read, and nothing copied"
    cache.evict(NAME, "ram")
    seen.clear()
    cache.load(NAME)
    assert seen == sorted(seen)
    assert 0.9 < seen[-1] <= 1.0
    assert dict(store.moved()) == dict.fromkeys(store.parts(), 0)


def test_only_what_a_class_alone_can_load_is_loaded_alone(folder_of: FolderOf) -> None:
    recipe = store_of(folder_of)._recipes.of(folder_of(NAME))
    unet = next(part for part in recipe.weighty if part.name == "unet")
    assert type(loading.load_component(unet, recipe)).__name__ == "UNet2DConditionModel"
    assert loading.load_component(replace(unet, library="stable_diffusion"), recipe) is None
    assert loading.load_component(replace(unet, class_name="NoSuchModel"), recipe) is None


def test_host_memory_that_is_full_ends_a_construction_with_nothing_held(folder_of: FolderOf) -> None:
    memory = PrivateMemory()
    store = store_of(folder_of, device=CpuDevice(1 << 30), memory=memory)
    store.construct(NAME)
    sizes = [part.nbytes for part in store.needs(NAME)]
    store.forget(NAME)
    memory.budget_bytes = max(sizes)  # the others are proved, and left on the disk
    store.construct(NAME)
    assert tiers(store, NAME) == {"ram", "disk"}
    assert memory.used_bytes <= max(sizes)
