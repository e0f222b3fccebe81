from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from falctl.board import codec
from falctl.board import layout as at
from falctl.board.board import Board
from falctl.board.rows import MemoryRow
from falctl.errors import ConfigError, FalctlError, NotRunningError
from tests.board import samples


def test_every_region_is_empty_at_first_and_then_says_what_was_put(tmp_path: Path) -> None:
    with closing(Board.create(tmp_path / "board", runners=2, gpus=2)) as board:
        reader = Board.open(tmp_path / "board")
        assert (reader.runners, reader.gpus) == (2, 2)
        empty = [
            reader.fleet(),
            reader.router(),
            reader.memory(),
            reader.runner(1),
            reader.life(1),
            reader.gpu(1),
        ]
        assert empty == [None] * 6
        board.put_fleet(samples.fleet_row())
        board.put_router(samples.router_row())
        board.put_memory(MemoryRow(9, 8, 7, 6, 5))
        board.put_runner(1, samples.told_apart(3))
        board.put_life(1, samples.life_row())
        board.put_gpu(1, samples.gpu_row())
        assert reader.fleet() == samples.fleet_row()
        assert reader.router() == samples.router_row()
        assert reader.memory() == MemoryRow(9, 8, 7, 6, 5)
        assert reader.runner(1) == samples.told_apart(3)
        assert reader.life(1) == samples.life_row()
        assert reader.gpu(1) == samples.gpu_row()
        assert [reader.runner(0), reader.life(0), reader.gpu(0)] == [None] * 3
        reader.close()


def test_the_smallest_board_is_a_board(tmp_path: Path) -> None:
    with closing(Board.create(tmp_path / "board", runners=0, gpus=0)) as board:
        board.put_fleet(samples.fleet_row())
        assert board.fleet() == samples.fleet_row()


def test_an_unchanged_region_is_read_as_the_same_object(board: Board) -> None:
    board.put_runner(0, samples.told_apart(5))
    first = board.runner(0)
    assert board.runner(0) is first
    board.put_runner(0, samples.told_apart(5))
    assert board.runner(0) is not first
    assert board.runner(0) == first


def test_a_shorter_row_leaves_nothing_of_a_longer_one(board: Board) -> None:
    board.put_runner(0, samples.told_apart(39))
    board.put_runner(0, samples.told_apart(1))
    assert board.runner(0) == samples.told_apart(1)


def test_a_row_that_is_too_big_is_put_without_the_hints_that_do_not_fit(board: Board) -> None:
    hints = tuple(f"{i:060}" for i in range(9000))
    board.put_runner(0, samples.runner_row(hints=hints))
    row = board.runner(0)
    assert row is not None
    assert row.hints is not None
    assert len(row.hints) >= 2000
    assert (row.hints, row.hints_dropped) == (hints[: len(row.hints)], 9000 - len(row.hints))


def test_a_reset_region_is_empty_again_and_takes_the_next_row(board: Board) -> None:
    board.put_runner(1, samples.told_apart(5))
    assert board.runner(1) is not None
    before = board.versions()
    board.reset_runner(1)
    assert board.runner(1) is None
    assert board.versions() != before
    board.put_runner(1, samples.told_apart(6))
    assert board.runner(1) == samples.told_apart(6)


def test_versions_stay_equal_until_any_region_changes(board: Board) -> None:
    puts: list[Callable[[], None]] = [
        lambda: board.put_fleet(samples.fleet_row()),
        lambda: board.put_router(samples.router_row()),
        lambda: board.put_memory(MemoryRow(9)),
        lambda: board.put_runner(1, samples.told_apart(1)),
        lambda: board.put_life(1, samples.life_row()),
        lambda: board.put_gpu(1, samples.gpu_row()),
    ]
    seen = {board.versions()}
    for put in puts:
        assert board.versions() in seen
        put()
        assert board.versions() not in seen
        seen.add(board.versions())


def test_a_runner_beyond_the_fleet_is_not_another_region(board: Board) -> None:
    for outside in (-1, 2):
        with pytest.raises(AssertionError):
            board.put_runner(outside, samples.told_apart(1))
        with pytest.raises(AssertionError):
            board.runner(outside)


def test_a_child_writes_through_its_descriptor_and_leaves_it_open(board: Board) -> None:
    child = Board.attach(board.fd)
    child.put_runner(0, samples.told_apart(2))
    child.close()
    os.fstat(board.fd)
    assert board.runner(0) == samples.told_apart(2)


def test_a_reader_cannot_write(board: Board, tmp_path: Path) -> None:
    with closing(Board.open(tmp_path / "board")) as reader, pytest.raises(TypeError, match="read-only"):
        reader.put_runner(0, samples.told_apart(1))
    assert board.runner(0) is None


def test_close_gives_back_the_descriptor(tmp_path: Path) -> None:
    made = Board.create(tmp_path / "board", runners=1, gpus=1)
    opened = Board.open(tmp_path / "board")
    for board in (made, opened):
        board.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(board.fd)


def test_the_file_is_private_and_every_byte_of_it_is_on_the_disk(board: Board, tmp_path: Path) -> None:
    found = (tmp_path / "board").stat()
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert found.st_size == board.layout.total_bytes
    assert found.st_blocks * 512 >= found.st_size
    assert not os.get_inheritable(board.fd)


def test_a_new_board_leaves_the_readers_of_the_old_one_alone(board: Board, tmp_path: Path) -> None:
    board.put_runner(0, samples.told_apart(9))
    reader = Board.open(tmp_path / "board")
    (tmp_path / "board.new").write_bytes(b"left by a predecessor that died in create()")
    with closing(Board.create(tmp_path / "board", runners=1, gpus=1)) as new:
        assert reader.runner(0) == samples.told_apart(9)
        assert new.runner(0) is None
    reader.close()
    assert [found.name for found in tmp_path.iterdir()] == ["board"]


def test_an_unlinked_board_goes_on_working(board: Board, tmp_path: Path) -> None:
    reader = Board.open(tmp_path / "board")
    (tmp_path / "board").unlink()
    board.put_runner(0, samples.told_apart(7))
    assert reader.runner(0) == samples.told_apart(7)
    late = Board.attach(board.fd)
    assert late.runner(0) == samples.told_apart(7)
    late.close()
    reader.close()


def test_without_a_file_falctl_is_not_running(tmp_path: Path) -> None:
    with pytest.raises(NotRunningError, match="falctl up"):
        Board.open(tmp_path / "board")


def test_a_board_that_cannot_be_opened_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FalctlError, match=r"cannot open the board .*file/board: Not a directory"):
        Board.open(tmp_path / "file" / "board")


@pytest.mark.parametrize("word", range(at.HEADER_WORDS))
def test_a_board_of_another_version_is_refused(board: Board, tmp_path: Path, word: int) -> None:
    changed = (board._words[word] + 1) % (1 << 64)
    os.pwrite(board.fd, changed.to_bytes(8, "little"), word * 8)
    with pytest.raises(FalctlError, match=f"{tmp_path}/board is not a board of this version") as caught:
        Board.open(tmp_path / "board")
    assert not isinstance(caught.value, NotRunningError)
    with pytest.raises(FalctlError, match=f"descriptor {board.fd} is not a board"):
        Board.attach(board.fd)


def test_other_fields_in_a_row_are_another_version(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert board.fleet() is None
    monkeypatch.setattr(codec, "SCHEMA", codec.SCHEMA ^ 1)
    with pytest.raises(FalctlError, match="not a board of this version"):
        Board.open(tmp_path / "board")


@pytest.mark.parametrize("content", [b"", b"short", bytes(1 << 20)])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "board").write_bytes(content)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(FalctlError, match="not a board of this version"):
        Board.open(tmp_path / "board")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_board_that_was_cut_short_is_refused(board: Board, tmp_path: Path) -> None:
    os.truncate(tmp_path / "board", board.layout.total_bytes - 1)
    with pytest.raises(FalctlError, match="not a board of this version"):
        Board.open(tmp_path / "board")


def test_a_disk_without_room_is_one_clear_error_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    before = len(list(Path("/proc/self/fd").iterdir()))
    bytes_needed = at.Layout(runners=2, gpus=2).total_bytes
    with pytest.raises(
        ConfigError, match=rf"{tmp_path}/board \({bytes_needed} bytes\): No space left on device"
    ):
        Board.create(tmp_path / "board", runners=2, gpus=2)
    assert list(tmp_path.iterdir()) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_board_over_the_limit_of_a_file_is_one_clear_error_and_leaves_no_file(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, hard))
    try:
        with pytest.raises(ConfigError, match="File too large"):
            Board.create(tmp_path / "board", runners=2, gpus=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory"):
        Board.create(tmp_path / "missing" / "board", runners=1, gpus=1)


def test_a_directory_in_the_way_is_one_clear_error_and_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "board").mkdir()
    with pytest.raises(ConfigError, match=r"cannot make the board .*Is a directory"):
        Board.create(tmp_path / "board", runners=1, gpus=1)
    assert [found.name for found in tmp_path.iterdir()] == ["board"]
