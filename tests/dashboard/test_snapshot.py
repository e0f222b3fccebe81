"""A snapshot tells what the board tells, as ages, and survives a board that tells little."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from falctl.board.board import Board
from falctl.board.rows import MemoryRow, QueuedRow, RunnerRow
from falctl.core.types import Epoch, GiB, RequestId
from falctl.dashboard.snapshot import MemoryFacts, take
from tests.dashboard import fleets
from tests.dashboard.fleets import NOW


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    made = fleets.new_board(tmp_path, runners=5, gpus=4)
    yield made
    made.close()


def test_instants_become_ages(board: Board) -> None:
    fleets.put_busy(board)
    snapshot = take(board, now=NOW)
    assert snapshot.fleet is not None
    assert snapshot.fleet.uptime_s == pytest.approx(8054)
    assert snapshot.runners[0].executing[0].elapsed_s == pytest.approx(3.2)
    assert snapshot.runners[4].restart_in_s == pytest.approx(3.0)
    assert [round(q.age_s, 1) for q in snapshot.queue] == [4.2, 1.1, 0.3]
    assert [q.why for q in snapshot.queue] == [
        "runner 0 busy, 3.1 s left",
        "",
        "runner 1 loads it, 12 s left",
    ]


def test_a_model_tells_its_tier_its_pin_and_when_it_leaves(board: Board) -> None:
    fleets.put_busy(board)
    flux, turbo, base, _ = take(board, now=NOW).runners[0].models
    assert (flux.tier, flux.pinned, flux.leaves_in_s, flux.fraction) == ("vram", False, None, None)
    assert (turbo.pinned, turbo.leaves_in_s) == (True, 90.0)
    assert (base.tier, base.vram_bytes, base.ram_bytes) == ("ram", 0, base.size_bytes)
    assert take(board, now=NOW).runners[1].models[1].fraction == 0.43


def test_a_model_whose_size_nobody_told_takes_what_it_holds(board: Board) -> None:
    row = replace(fleets.model("m"), vram_bytes=5, ram_bytes=7, keep_until=NOW - 1, fraction=7.5)
    board.put_runner(0, RunnerRow(Epoch(1), 1, (), models=(row,), beat_at=NOW))
    (model,) = take(board, now=NOW).runners[0].models
    assert (model.size_bytes, model.leaves_in_s, model.fraction) == (7, 0.0, 1.0)


def test_the_queue_is_oldest_first_whatever_its_order_on_the_board(board: Board) -> None:
    queue = tuple(
        QueuedRow(RequestId(f"r{n}"), None, "c", NOW - age) for n, age in enumerate((1.0, 9.0, 4.0))
    )
    board.put_router(replace(fleets.busy_router(), queue=queue))
    assert [q.request for q in take(board, now=NOW).queue] == ["r1", "r2", "r0"]


def test_host_memory_is_told_as_the_supervisor_writes_it(board: Board) -> None:
    board.put_memory(MemoryRow(32 * GiB, 20 * GiB, 7 * GiB, 4, 1))
    assert take(board, now=NOW).memory == MemoryFacts(
        budget_bytes=32 * GiB, held_bytes=20 * GiB, used_bytes=7 * GiB, blocks=4, waiting=1
    )


def test_an_empty_board_is_a_snapshot_of_unknowns(board: Board) -> None:
    snapshot = take(board, now=NOW)
    assert snapshot.memory is None
    assert snapshot.fleet is None
    assert snapshot.router is None
    assert snapshot.cards == ()
    assert [runner.state for runner in snapshot.runners] == ["unknown"] * 5


def test_a_board_that_is_being_written_everywhere_reads_as_empty(board: Board, tmp_path: Path) -> None:
    fleets.put_busy(board)
    for region in board.layout.regions():
        board._words[region.word] |= 1
    reader = Board.open(tmp_path / "board")
    snapshot = take(reader, now=NOW)
    assert (snapshot.fleet, snapshot.router, snapshot.cards) == (None, None, ())
    reader.close()


@pytest.mark.parametrize(("age_s", "stale"), [(2.99, False), (3.01, True)])
def test_a_router_is_stale_when_its_beat_is_older_than_three_seconds(
    board: Board, age_s: float, stale: bool
) -> None:
    board.put_router(fleets.busy_router(beat_at=NOW - age_s))
    router = take(board, now=NOW).router
    assert router is not None
    assert router.stale is stale


@pytest.mark.parametrize(("age_s", "stale"), [(2.99, False), (3.01, True)])
def test_a_ready_runner_is_stale_when_its_beat_is_older_than_three_seconds(
    board: Board, age_s: float, stale: bool
) -> None:
    board.put_life(0, fleets.life(0, gpus=(0,)))
    board.put_runner(0, RunnerRow(Epoch(1), 1, (), beat_at=NOW - age_s))
    assert take(board, now=NOW).runners[0].stale is stale


def test_a_runner_that_need_not_beat_is_not_stale(board: Board) -> None:
    board.put_life(0, fleets.life(0, gpus=(0,), state="starting", reason="importing torch"))
    assert not take(board, now=NOW).runners[0].stale


def test_a_ready_runner_whose_host_has_written_nothing_is_stale(board: Board) -> None:
    board.put_life(0, fleets.life(0, gpus=(0,)))
    runner = take(board, now=NOW).runners[0]
    assert runner.stale
    assert runner.beat_age_s is None


def test_what_an_earlier_incarnation_wrote_is_not_shown(board: Board) -> None:
    board.put_life(0, replace(fleets.life(0, gpus=(0,)), epoch=Epoch(2)))
    board.put_runner(
        0, RunnerRow(Epoch(1), 1, fleets.hints("gone"), models=(fleets.model("gone"),), beat_at=NOW)
    )
    runner = take(board, now=NOW).runners[0]
    assert runner.models == ()
    assert runner.hints == ()


def test_an_app_without_hints_differs_from_one_that_is_warm_for_nothing(board: Board) -> None:
    for runner, hints in ((0, None), (1, ())):
        board.put_life(runner, fleets.life(runner, gpus=(0,)))
        board.put_runner(runner, RunnerRow(Epoch(1), 1, hints, beat_at=NOW))
    runners = take(board, now=NOW).runners
    assert runners[0].hints is None
    assert runners[1].hints == ()


def test_a_card_that_only_a_runner_speaks_of_is_there_and_unknown(board: Board) -> None:
    board.put_life(0, fleets.life(0, gpus=(2,)))
    cards = take(board, now=NOW).cards
    assert [(card.card, card.state, card.util_pct) for card in cards] == [(2, "unknown", None)]


def test_figures_of_a_card_grow_old(board: Board) -> None:
    for card, age_s in ((0, 4.9), (1, 5.1)):
        board.put_gpu(card, fleets.h100(card, util_pct=1, temp_c=30, power_w=70, used_gib=1, at=NOW - age_s))
    assert [card.stale for card in take(board, now=NOW).cards] == [False, True]


def test_there_is_no_hit_rate_before_the_first_hint(board: Board) -> None:
    board.put_router(replace(fleets.busy_router(), hits=0, misses=0))
    router = take(board, now=NOW).router
    assert router is not None
    assert router.hit_rate is None


def test_numbers_that_are_none_do_not_reach_anyone(board: Board) -> None:
    board.put_router(replace(fleets.busy_router(), p50_s=math.nan, rate_rps=math.inf, started_at=-math.inf))
    router = take(board, now=NOW).router
    assert router is not None
    assert (router.p50_s, router.rate_rps, router.uptime_s) == (0.0, 0.0, 0.0)
