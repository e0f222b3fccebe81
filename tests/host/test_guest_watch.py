"""Idle models leave when other programs want the card: seen on the board, done by the caches, nobody else asked."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from falctl.board.board import Board
from falctl.board.rows import GpuRow, LifeRow, RunnerRow
from falctl.core.guest import SAMPLES, SETTLE_S
from falctl.core.types import Epoch, RunnerId
from falctl.host import device_use, guest_watch
from falctl.host.app_threads import AppThreads
from falctl.host.guest_watch import GuestWatch
from falctl.toolkit import ModelCache
from falctl.toolkit.opaque_store import OpaqueStore
from tests.wait import until

GiB = 1 << 30
CARD = GpuRow("cuda", 0, "GPU-0", "Fake", "ok", total_bytes=24 * GiB, used_bytes=19 * GiB, at=1.0)


class World:
    """A board with two runners on card 1 and one on card 0, as the supervisor and their hosts write it."""

    def __init__(self, folder: Path) -> None:
        self.board = Board.create(folder / "board", runners=3, gpus=2)
        self.row = CARD
        for runner, card in ((0, 1), (1, 1), (2, 0)):
            life = LifeRow(
                RunnerId(runner), Epoch(1), 1, "ready", since_at=0.0, restarts=0, reason="", gpus=(card,)
            )
            self.board.put_life(RunnerId(runner), life)
        self.board.put_gpu(0, CARD)
        self.holds(0, 9 * GiB)
        self.holds(1, 9 * GiB)
        self.watch = self.watch_of(())

    def watch_of(self, caches: tuple[ModelCache[str], ...]) -> GuestWatch:
        return GuestWatch(self.board, RunnerId(0), caches=caches, reserve_bytes=GiB)

    def holds(self, runner: int, nbytes: int) -> None:
        row = RunnerRow(Epoch(1), slots=1, hints=(), device_bytes=nbytes)
        self.board.put_runner(RunnerId(runner), row)

    def sampled(self, used_bytes: int, *, times: int = 1, **changes: object) -> list[int]:
        """Return what is due after each of *times* samples, a second apart."""
        due = []
        for _ in range(times):
            self.row = replace(self.row, used_bytes=used_bytes, at=self.row.at + 1.0, **changes)  # type: ignore[arg-type]
            self.board.put_gpu(1, self.row)
            due.append(self.watch.due_bytes())
        return due


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.board.close()


def test_the_runners_of_a_card_share_what_others_have_grown_by(world: World) -> None:
    assert not any(world.sampled(19 * GiB, times=3))
    assert world.sampled(24 * GiB, times=SAMPLES) == [0] * (SAMPLES - 1) + [GiB // 2]
    assert not any(world.sampled(24 * GiB, times=int(SETTLE_S) - 1))


def test_a_runner_that_holds_nothing_has_no_part_in_it(world: World) -> None:
    world.holds(1, 0)
    world.sampled(10 * GiB)
    assert world.sampled(24 * GiB, times=SAMPLES)[-1] == GiB


def test_what_a_peer_on_the_card_takes_is_not_another_programs(world: World) -> None:
    world.sampled(19 * GiB)
    world.holds(1, 14 * GiB)
    assert not any(world.sampled(24 * GiB, times=10))


def test_what_a_runner_of_another_card_holds_is_not_ours_here(world: World) -> None:
    world.sampled(19 * GiB)
    world.holds(2, 14 * GiB)
    assert any(world.sampled(24 * GiB, times=SAMPLES))


@pytest.mark.parametrize("changes", [{"state": "unknown"}, {"state": "lost"}, {"kind": "cpu"}])
def test_a_card_that_does_not_answer_and_a_cpu_ask_for_nothing(world: World, changes: dict[str, str]) -> None:
    world.sampled(19 * GiB)
    assert not any(world.sampled(24 * GiB, times=10, **changes))


def test_a_runner_without_a_row_asks_for_nothing(tmp_path: Path) -> None:
    board = Board.create(tmp_path / "board", runners=1, gpus=1)
    assert GuestWatch(board, RunnerId(0), caches=(), reserve_bytes=GiB).due_bytes() == 0
    board.close()


def cache_of(*names: str) -> ModelCache[str]:
    cache = ModelCache(OpaqueStore(str))
    for name in names:
        cache.load(name)
    return cache


def test_the_least_recently_used_idle_model_leaves_where_no_bytes_are_counted(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    empty, cache = cache_of(), cache_of("a", "b", "c")
    watch = world.watch_of((empty, cache))
    with cache.lease("a"):
        watch.give_way(GiB)
        assert set(cache.resident) == {"a", "c"}
        assert f"cache.gave_way bytes={GiB}" in caplog.text
        cache.pin("c")
        watch.give_way(GiB)
        assert set(cache.resident) == {"a", "c"}, "what is leased or pinned stays"


def test_a_cache_whose_unload_raises_does_not_keep_the_next_from_giving_way(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(model: str) -> None:
        raise RuntimeError(model)

    broken = ModelCache(OpaqueStore(str, unload=refuse))
    broken.load("a")
    cache = cache_of("b")
    world.watch_of((broken, cache)).give_way(GiB)
    assert cache.resident == ()
    assert "cache.give_way_failed" in caplog.text


def test_it_looks_by_itself_and_moves_on_the_apps_thread(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_watch, "PERIOD_S", 0.01)
    threads, inside = AppThreads(1), list[bool]()
    cache = ModelCache(OpaqueStore(str, unload=lambda model: inside.append(threads.inside)))
    cache.load("a")
    world.watch = world.watch_of((cache,))
    world.sampled(19 * GiB)

    async def watched() -> None:
        world.watch.start(threads)

        def sampled() -> bool:
            world.row = replace(world.row, used_bytes=24 * GiB, at=world.row.at + 1.0)
            world.board.put_gpu(1, world.row)
            return bool(inside)

        await asyncio.to_thread(until, sampled, within_s=60.0, what="the model has left")

    asyncio.run(watched())
    assert inside == [True]
    assert cache.resident == ()


def test_what_the_process_holds_is_torchs_to_say_once_cuda_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(is_initialized=lambda: True, memory_reserved=lambda device: 7 + device)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert device_use.reserved_bytes() == 7
    cuda.is_initialized = lambda: False
    assert device_use.reserved_bytes() == 0
    monkeypatch.delitem(sys.modules, "torch")
    assert device_use.reserved_bytes() == 0
