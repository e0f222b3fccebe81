"""A writer and a reader, step by step: each race is written down, and each guard has the one that it is for."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from falctl.board import layout as at
from falctl.board.board import READ_TRIES, Board
from tests.board import samples

OLD, NEW = samples.told_apart(11), samples.told_apart(12)


class _DiedError(Exception):
    """Stands in for SIGKILL between two steps of a write."""


class MidWrite(Board):
    """A writer that does *at_half* when half of its payload is stored."""

    at_half: Callable[[], None] = staticmethod(lambda: None)

    def _store(self, region: at.Region, payload: bytes) -> None:
        super()._store(region, payload[: len(payload) // 2])
        self.at_half()
        super()._store(region, payload)


class Interleaved(Board):
    """A reader that does *after_copy* between its copy of a region and its second look at the word."""

    copies = 0
    after_copy: Callable[[], None] = staticmethod(lambda: None)

    def _copy(self, region: at.Region) -> tuple[int, bytes]:
        self.copies += 1
        found = super()._copy(region)
        self.after_copy()
        return found


@pytest.fixture
def writer(board: Board) -> Iterator[MidWrite]:
    made = MidWrite.attach(board.fd)
    assert isinstance(made, MidWrite)
    yield made
    made.close()


@pytest.fixture
def reader(board: Board, tmp_path: Path) -> Iterator[Interleaved]:
    made = Interleaved.open(tmp_path / "board")
    assert isinstance(made, Interleaved)
    yield made
    made.close()


@pytest.fixture
def region(board: Board) -> at.Region:
    return board.layout.regions()[board.layout.runner(0)]


def _die() -> None:
    raise _DiedError


def _die_in_mid_write(writer: MidWrite) -> None:
    writer.at_half = _die
    with pytest.raises(_DiedError):
        writer.put_runner(0, NEW)
    writer.at_half = lambda: None


def test_a_read_in_mid_write_gives_the_last_good_copy_and_then_the_new_one(
    writer: MidWrite, reader: Interleaved
) -> None:
    writer.put_runner(0, OLD)
    assert reader.runner(0) == OLD
    seen = []
    writer.at_half = lambda: seen.append(reader.runner(0))
    writer.put_runner(0, NEW)
    assert seen == [OLD]
    assert reader.runner(0) == NEW


def test_a_first_read_in_mid_write_gives_none(writer: MidWrite, reader: Interleaved) -> None:
    writer.put_runner(0, OLD)
    seen = []
    writer.at_half = lambda: seen.append(reader.runner(0))
    writer.put_runner(0, NEW)
    assert seen == [None]


def test_nothing_is_copied_under_an_odd_word(writer: MidWrite, reader: Interleaved) -> None:
    seen = []
    writer.at_half = lambda: seen.append(reader.runner(0))
    writer.put_runner(0, NEW)
    assert (seen, reader.copies) == ([None], 0)


def test_a_row_under_an_odd_word_is_not_taken_even_if_its_checksum_agrees(
    board: Board, reader: Interleaved, region: at.Region
) -> None:
    board.put_runner(0, NEW)
    board._words[region.word] |= 1
    _agree(board, region, under=board._words[region.word])
    assert reader.runner(0) is None


def test_a_row_that_changed_during_the_copy_is_copied_again(board: Board, reader: Interleaved) -> None:
    board.put_runner(0, OLD)

    def change_once() -> None:
        reader.after_copy = lambda: None
        board.put_runner(0, NEW)

    reader.after_copy = change_once
    assert reader.runner(0) == NEW
    assert reader.copies == 2


def test_a_torn_copy_is_not_taken_even_if_its_checksum_agrees(
    writer: MidWrite, board: Board, reader: Interleaved, region: at.Region
) -> None:
    writer.put_runner(0, OLD)
    before = board._words[region.word]

    def overtaken_by_a_write_that_fakes_the_checksum(found: tuple[int, bytes]) -> tuple[int, bytes]:
        writer.put_runner(0, NEW)
        torn = found[1].replace(b"11-3", b"12-3")
        return zlib.crc32(torn, before), torn

    reader_copy = reader._copy
    plan = [overtaken_by_a_write_that_fakes_the_checksum]

    def copy(region: at.Region) -> tuple[int, bytes]:
        found = reader_copy(region)
        return plan.pop()(found) if plan else found

    reader._copy = copy  # type: ignore[method-assign]
    assert reader.runner(0) == NEW


def test_bytes_that_differ_from_their_checksum_are_not_taken(
    board: Board, reader: Interleaved, region: at.Region
) -> None:
    board.put_runner(0, OLD)
    assert reader.runner(0) == OLD
    board.put_runner(0, NEW)
    board._map[region.start + 3] ^= 1
    assert reader.runner(0) == OLD
    assert reader.copies == 1 + READ_TRIES


def test_an_old_row_that_is_still_seen_under_a_new_number_is_not_taken(
    board: Board, reader: Interleaved, region: at.Region
) -> None:
    # What a CPU without ordered stores may show: the new sequence word first, the rest of the write later.
    board.put_runner(0, OLD)
    earlier = bytes(board._map[region.start - at.HEAD_BYTES : region.start + 2048])
    board.put_runner(0, NEW)
    later = bytes(board._map[region.start - at.HEAD_BYTES : region.start + 2048])
    board._map[region.start - at.HEAD_BYTES : region.start + 2048] = earlier
    assert reader.runner(0) is None
    board._map[region.start - at.HEAD_BYTES : region.start + 2048] = later
    assert reader.runner(0) == NEW


@pytest.mark.parametrize("length", [at.RUNNER_BYTES, 1 << 40, (1 << 64) - 1])
def test_a_senseless_length_copies_no_more_than_the_region(
    board: Board, reader: Interleaved, region: at.Region, length: int
) -> None:
    board.put_runner(0, OLD)
    board._words[region.length_word] = length
    assert len(reader._copy(region)[1]) == region.capacity_bytes
    assert reader.runner(0) is None


@pytest.mark.timeout(20)
def test_a_reader_gives_up_after_its_tries_when_the_writer_died_in_mid_write(
    writer: MidWrite, reader: Interleaved
) -> None:
    writer.put_runner(0, OLD)
    assert reader.runner(0) == OLD
    _die_in_mid_write(writer)
    assert reader.runner(0) == OLD
    assert reader.copies == 1


@pytest.mark.timeout(20)
def test_a_reader_gives_up_after_its_tries_when_the_writer_never_pauses(
    board: Board, reader: Interleaved
) -> None:
    board.put_runner(0, OLD)
    assert reader.runner(0) == OLD
    board.put_runner(0, NEW)
    reader.after_copy = lambda: board.put_runner(0, NEW)
    assert reader.runner(0) == OLD
    assert reader.copies == 1 + READ_TRIES


def test_the_next_writer_heals_a_region_whose_writer_died_in_mid_write(
    writer: MidWrite, board: Board, reader: Interleaved, region: at.Region
) -> None:
    writer.put_runner(0, OLD)
    for _ in range(3):
        _die_in_mid_write(writer)
    assert board._words[region.word] % 2 == 1
    board.put_runner(0, NEW)
    assert board._words[region.word] % 2 == 0
    assert reader.runner(0) == NEW


def test_the_next_writer_is_in_mid_write_too_until_it_is_done(
    writer: MidWrite, board: Board, reader: Interleaved, region: at.Region
) -> None:
    _die_in_mid_write(writer)
    seen = []
    writer.at_half = lambda: seen.append((board._words[region.word] % 2, reader.runner(0)))
    writer.put_runner(0, OLD)
    assert seen == [(1, None)]


def test_reset_heals_a_region_whose_writer_died_in_mid_write(
    writer: MidWrite, board: Board, reader: Interleaved
) -> None:
    writer.put_runner(0, OLD)
    assert reader.runner(0) == OLD
    _die_in_mid_write(writer)
    board.reset_runner(0)
    assert reader.runner(0) is None
    writer.put_runner(0, NEW)
    assert reader.runner(0) == NEW


def test_a_reader_with_nothing_to_show_lets_a_preempted_writer_run(
    writer: MidWrite, reader: Interleaved, monkeypatch: pytest.MonkeyPatch
) -> None:
    _die_in_mid_write(writer)
    monkeypatch.setattr(os, "sched_yield", lambda: writer.put_runner(0, NEW))
    assert reader.runner(0) == NEW


def test_a_reader_with_a_good_copy_never_gives_its_turn_away(
    writer: MidWrite, reader: Interleaved, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.put_runner(0, OLD)
    assert reader.runner(0) == OLD
    _die_in_mid_write(writer)
    monkeypatch.setattr(os, "sched_yield", _die)
    assert reader.runner(0) == OLD


def test_a_region_in_mid_write_hides_no_other(writer: MidWrite, board: Board, reader: Interleaved) -> None:
    seen = []

    def write_the_neighbours() -> None:
        board.put_runner(1, NEW)
        board.put_router(samples.router_row())
        board.put_life(0, samples.life_row())
        seen.extend([reader.runner(1), reader.router(), reader.life(0)])

    writer.at_half = write_the_neighbours
    writer.put_runner(0, OLD)
    assert seen == [NEW, samples.router_row(), samples.life_row()]
    assert reader.runner(0) == OLD


def _agree(board: Board, region: at.Region, *, under: int) -> None:
    """Make the checksum agree with what stands there, as one bad copy in four thousand million would."""
    size = board._words[region.length_word]
    board._words[region.checksum_word] = zlib.crc32(board._map[region.start : region.start + size], under)
