"""A component on its way from the disk to a device: bit by bit as it was, or, wherever it ends, as if it had not begun."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from falctl.errors import HostMemoryFullError, ModelFilesError
from falctl.host.cache import reading, refill
from falctl.host.cache.arrival import Arrival, PlainArrival
from falctl.host.cache.components import PackedComponent
from falctl.host.cache.device import CpuDevice
from falctl.host.cache.private_memory import PrivateMemory
from falctl.host.cache.stopping import LoadCancelledError
from tests.host.cache.test_components import component, module, values

WAIT_S = 20.0
CELL = 4096


class Steps:
    """Counts what a load does, and does something at one of its steps."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self._at: tuple[str, int] | None = None
        self._act: Callable[[], object] = lambda: None

    def at(self, step: str, number: int, act: Callable[[], object]) -> None:
        self.log.clear()
        self._at, self._act = (step, number), act

    def __call__(self, step: str) -> None:
        self.log.append(step)
        if self._at == (step, self.log.count(step)):
            self._act()


class Hooked(PlainArrival):
    """Tells of each copy."""

    steps: Steps

    def copy(self, at: int, host: torch.Tensor) -> None:
        self.steps("copy")
        super().copy(at, host)

    def finish(self) -> torch.Tensor:
        self.steps("finish")
        return super().finish()


class HookedDevice(CpuDevice):
    def __init__(self, budget_bytes: int, steps: Steps) -> None:
        super().__init__(budget_bytes)
        self.steps = steps
        self.staged_bytes: list[int] = []

    def arrival(self, nbytes: int) -> Arrival:
        self.steps("allocate")
        arrival = Hooked(self.allocate(nbytes), self.give_back)
        arrival.steps = self.steps
        return arrival

    def staging(self, nbytes: int) -> torch.Tensor:
        self.staged_bytes.append(nbytes)
        return super().staging(nbytes)


class HookedMemory(PrivateMemory):
    def __init__(self, steps: Steps) -> None:
        super().__init__()
        self.steps = steps

    def obtain(self, key: str, nbytes: int, *, cancelled: threading.Event | None = None) -> Any:
        self.steps("obtain")
        return super().obtain(key, nbytes, cancelled=cancelled)


class World:
    """A component on the disk, of 9 cells, in two dtypes, with bytes that no file has."""

    def __init__(self, folder: Path) -> None:
        self.steps = Steps()
        self.memory = HookedMemory(self.steps)
        weights = {f"w{i}": torch.arange(1000.0 * i, 1000.0 * i + 1500) for i in range(5)}
        halves = {"halved": torch.arange(1200.0).half()}  # is float32 in the module
        self.module = module(**{k: w.clone() for k, w in weights.items()}, halved=halves["halved"].float())
        self.module.register_buffer("noise", torch.arange(7.0), persistent=False)
        self.expected = {**values(self.module), "noise": list(range(7))}
        source = component(folder, **weights, **halves)
        self.path = source.weights[0].path
        self.part = PackedComponent(self.module, source, key="k", memory=self.memory)
        self.part.drop()
        self.device = HookedDevice(1 << 20, self.steps)
        assert self.part.part.tier == "disk"

    def bring(self, *, filling: bool, cancelled: threading.Event | None = None) -> None:
        self.part.to_device(self.device, filling=filling, cancelled=cancelled)

    def check_untouched(self) -> None:
        assert (self.part.part.tier, self.part.part.host, self.part.moved) == ("disk", False, 0)
        assert (self.device.used_bytes, self.memory.used_bytes) == (0, 0)

    def check_there(self, *, filling: bool) -> None:
        assert (self.part.part.tier, self.part.part.host) == ("vram", filling)
        assert (self.device.used_bytes, self.memory.used_bytes) == (
            self.part.whole_bytes,
            self.part.whole_bytes if filling else 0,
        )
        assert {**values(self.module), "noise": self.module.noise.tolist()} == self.expected


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(refill, "CHUNK_BYTES", CELL)
    monkeypatch.setattr(refill, "STAGING_BYTES", 2 * CELL)
    small = reading.read_weights
    made = World(tmp_path)

    def one_by_one(*args: Any, **options: Any) -> None:
        small(*args, **options, threads=1, chunk_bytes=CELL)  # so that the order of steps is always the same

    really = os.preadv

    def counted(fd: int, views: list[memoryview], at: int) -> int:
        made.steps("read")
        return really(fd, views, at)

    monkeypatch.setattr(refill, "read_weights", one_by_one)
    monkeypatch.setattr(os, "preadv", counted)
    return made


@pytest.mark.parametrize("filling", [True, False])
def test_copies_begin_before_the_last_read_and_the_bytes_are_the_same(world: World, *, filling: bool) -> None:
    world.steps.log.clear()
    world.bring(filling=filling)
    log = world.steps.log
    assert log[0] == "allocate", "what does not fit is known before anything is read"
    first_of_a_file = log.index("copy", log.index("copy") + 1)
    assert first_of_a_file < len(log) - 1 - log[::-1].index("read")
    world.check_there(filling=filling)
    world.part.evict()
    if filling:
        assert world.part.part.tier == "ram"
        assert {**values(world.module), "noise": world.module.noise.tolist()} == world.expected


def test_where_host_memory_has_no_room_two_small_buffers_are_all_that_bytes_pass_through(
    world: World,
) -> None:
    world.bring(filling=False)
    assert world.device.staged_bytes == [2 * CELL] * 2
    assert world.part.whole_bytes > 4 * 2 * CELL
    assert "obtain" not in world.steps.log[world.steps.log.index("allocate") :]


class Lazy(PlainArrival):
    """Copies as late as a card may that copies from pinned memory: when somebody waits for it."""

    def __init__(self, flat: torch.Tensor, give_back: Callable[[], object]) -> None:
        super().__init__(flat, give_back)
        self.queued: list[tuple[int, torch.Tensor]] = []

    def copy(self, at: int, host: torch.Tensor) -> None:
        self.queued.append((at, host))

    def mark(self) -> object:
        return len(self.queued)

    def wait(self, mark: object) -> None:
        assert isinstance(mark, int)
        for i, (at, host) in enumerate(self.queued[:mark]):
            super().copy(at, host)
            self.queued[i] = at, host[:0]

    def finish(self) -> torch.Tensor:
        self.wait(len(self.queued))
        return super().finish()


@pytest.mark.parametrize("filling", [True, False])
def test_a_buffer_is_read_into_again_when_it_has_been_copied_from(
    world: World, monkeypatch: pytest.MonkeyPatch, *, filling: bool
) -> None:
    device = world.device
    monkeypatch.setattr(device, "arrival", lambda nbytes: Lazy(device.allocate(nbytes), device.give_back))
    world.bring(filling=filling)
    world.check_there(filling=filling)


def test_what_is_small_passes_through_one_buffer_of_its_size(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refill, "STAGING_BYTES", 1 << 20)
    world.bring(filling=False)
    assert len(world.device.staged_bytes) == 1
    assert world.device.staged_bytes[0] < world.part.whole_bytes
    world.check_there(filling=False)


def counts(world: World, *, filling: bool) -> dict[str, int]:
    world.steps.log.clear()
    world.bring(filling=filling)
    log = list(world.steps.log)
    world.part.evict()
    world.part.drop()
    world.check_untouched()
    return {step: log.count(step) for step in log}


@pytest.mark.parametrize("filling", [True, False])
@pytest.mark.parametrize("how", ["cancel", "raise"])
def test_wherever_a_load_ends_nothing_is_held_and_the_next_one_works(
    world: World, how: str, *, filling: bool
) -> None:
    points = [(step, n + 1) for step, count in counts(world, filling=filling).items() for n in range(count)]
    assert len(points) > 15
    ended = 0
    for step, number in points:
        cancelled = threading.Event()
        world.steps.at(step, number, cancelled.set if how == "cancel" else fail)
        error = brought(world, cancelled, filling=filling)
        world.steps.at("", 0, fail)
        if error is not None:
            assert isinstance(error, LoadCancelledError) == (how == "cancel")
            world.check_untouched()  # while the error, and so its traceback, are held
            ended += 1
        else:
            assert how == "cancel", "too late: all had been read and copied"
            world.check_there(filling=filling)
            world.part.evict()
            world.part.drop()
    assert ended >= len(points) - 2
    world.bring(filling=filling)
    world.check_there(filling=filling)


def brought(world: World, cancelled: threading.Event, *, filling: bool) -> Exception | None:
    try:
        world.bring(filling=filling, cancelled=cancelled)
    except (LoadCancelledError, RuntimeError) as error:
        return error
    return None


def fail() -> None:
    msg = "no"
    raise RuntimeError(msg)


@pytest.mark.parametrize("filling", [True, False])
def test_a_file_that_is_cut_while_it_is_on_its_way_leaves_nothing_on_the_device(
    world: World, *, filling: bool
) -> None:
    whole, stat = world.path.read_bytes(), world.path.stat()
    world.steps.at("copy", 3, lambda: os.truncate(world.path, len(whole) // 2))
    with pytest.raises(ModelFilesError, match=r"truncated|changed|written"):
        world.bring(filling=filling)
    world.check_untouched()
    assert stat.st_size == len(whole)


def test_where_host_memory_is_full_the_device_is_as_it_was(world: World) -> None:
    world.memory.budget_bytes = 1000
    with pytest.raises(HostMemoryFullError):
        world.bring(filling=True)
    world.check_untouched()
    world.bring(filling=False)
    world.check_there(filling=False)


def test_a_device_that_has_no_room_is_known_before_anything_is_read(world: World) -> None:
    world.device.budget_bytes = 1000
    world.steps.log.clear()
    with pytest.raises(torch.OutOfMemoryError):
        world.bring(filling=True)
    world.check_untouched()
    assert world.steps.log == ["allocate"]


def test_who_waits_for_anothers_fill_stops_when_it_is_cancelled_and_the_other_goes_on(world: World) -> None:
    other = world.memory.obtain(world.part._block_key, world.part.whole_bytes)
    cancelled = threading.Event()
    world.steps.at("obtain", 1, cancelled.set)
    with pytest.raises(LoadCancelledError):
        world.bring(filling=True, cancelled=cancelled)
    assert (world.device.used_bytes, world.part.part.tier) == (0, "disk")
    other.release()
    world.bring(filling=True)
    world.check_there(filling=True)


def test_bytes_that_another_has_filled_are_copied_and_not_read(world: World) -> None:
    world.part.fill(threading.Event())
    other = world.memory.obtain(world.part._block_key, world.part.whole_bytes)
    world.part.drop()
    world.steps.log.clear()
    world.bring(filling=True)
    assert world.steps.log == ["allocate", "obtain", "copy", "finish"]
    world.check_there(filling=True)
    other.release()


def test_a_load_that_another_thread_holds_up_stops_when_it_is_cancelled(world: World) -> None:
    reading_began, go_on, cancelled = threading.Event(), threading.Event(), threading.Event()

    def hold_up() -> None:
        reading_began.set()
        assert go_on.wait(WAIT_S)

    world.steps.at("read", 2, hold_up)
    filler = threading.Thread(target=world.part.fill, args=(threading.Event(),))
    filler.start()
    assert reading_began.wait(WAIT_S)
    cancelled.set()
    with pytest.raises(LoadCancelledError):
        world.bring(filling=True, cancelled=cancelled)
    with pytest.raises(LoadCancelledError):
        world.part.fill(cancelled)
    assert world.part.moved > 0
    go_on.set()
    filler.join(WAIT_S)
    assert (world.part.part.tier, world.part.moved) == ("ram", 0)


@pytest.mark.parametrize("filling", [True, False])
def test_bytes_are_counted_as_they_are_read_and_as_they_are_copied(world: World, *, filling: bool) -> None:
    seen: list[int] = []
    numbers = range(1, counts(world, filling=filling)["copy"] + 1)
    for number in numbers:
        world.steps.at("copy", number, lambda: seen.append(world.part.moved))
        world.bring(filling=filling)
        world.part.evict()
        world.part.drop()
    assert seen == sorted(seen)
    assert 0 == seen[0] < seen[1] < seen[-1] < 2 * world.part.whole_bytes
    assert seen[-1] > 1.6 * world.part.whole_bytes, "all but the last cells"
