"""The board between real processes: flat out, killed at any instant, killed in mid-write."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from falctl.board.board import Board
from falctl.board.index import HintIndex
from falctl.clock import monotonic_s
from falctl.core.types import Hint, RunnerId
from tests.board.samples import numbered_life, told_apart
from tests.wait import until

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
DEADLINE_S = 300.0


@contextmanager
def writer(board: Board, runner: int, mode: str, *, first: int = 1) -> Iterator[subprocess.Popen[bytes]]:
    """A process that writes the regions of *runner*; killed at the end of the block."""
    command = [sys.executable, "-m", "tests.board.writers", str(board.fd), str(runner), mode, str(first)]
    process = subprocess.Popen(command, pass_fds=(board.fd,), cwd=ROOT, stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_readers_of_a_writer_that_never_pauses_see_whole_rows_only(board: Board, tmp_path: Path) -> None:
    reader = Board.open(tmp_path / "board")
    deadline_at = monotonic_s() + DEADLINE_S
    last = rows = 0
    with writer(board, 0, "flat-out"):
        while rows < 300:
            assert monotonic_s() < deadline_at, f"only {rows} rows seen"
            row = reader.runner(0)
            if row is None or row.served == last:
                continue
            assert row == told_apart(row.served)
            assert row.served > last
            last, rows = row.served, rows + 1
    reader.close()


def test_writers_of_different_regions_never_disturb_each_other(board: Board, tmp_path: Path) -> None:
    reader = Board.open(tmp_path / "board")
    deadline_at = monotonic_s() + DEADLINE_S
    last = [0] * 4
    seen = [0] * 4
    with writer(board, 0, "flat-out"), writer(board, 1, "flat-out", first=1_000_000):
        while min(seen) < 200:
            assert monotonic_s() < deadline_at, f"only {seen} rows seen"
            for i in (0, 1):
                runner, life = reader.runner(i), reader.life(i)
                assert runner is None or runner == told_apart(runner.served)
                assert life is None or life == numbered_life(life.restarts)
                for k, n in ((i, runner.served if runner else 0), (2 + i, life.restarts if life else 0)):
                    assert n >= last[k]
                    assert n == 0 or (n >= 1_000_000) == (i == 1)
                    seen[k] += n > last[k]
                    last[k] = n
    reader.close()


def test_a_region_survives_writers_that_die_in_mid_write_again_and_again(
    board: Board, tmp_path: Path
) -> None:
    reader = Board.open(tmp_path / "board")
    index = HintIndex(reader)
    word = board.layout.regions()[board.layout.runner(0)].word
    for n in range(10, 80, 10):
        with writer(board, 0, "dies", first=n) as process:
            _await_row(reader, n)
            process.communicate(timeout=DEADLINE_S)
            assert process.returncode == -signal.SIGKILL
        assert board._words[word] % 2 == 1
        assert reader.runner(0) == told_apart(n)
        assert index.holders(Hint(f"{n}-1")) == ({RunnerId(0)} if n % 40 else set())
    late = Board.open(tmp_path / "board")
    assert late.runner(0) is None
    board.reset_runner(0)
    assert [reader.runner(0), late.runner(0), index.refresh(), index.row(RunnerId(0))] == [
        None,
        None,
        (0,),
        None,
    ]
    board.put_runner(0, told_apart(99))
    assert [reader.runner(0), late.runner(0)] == [told_apart(99)] * 2
    reader.close()
    late.close()


def test_a_writer_killed_at_any_instant_leaves_a_region_that_reads_and_heals(
    board: Board, tmp_path: Path
) -> None:
    reader = Board.open(tmp_path / "board")
    pause = threading.Event()
    dice = random.Random(5)
    first = 1
    for _ in range(8):
        with writer(board, 0, "flat-out", first=first) as process:
            _await_row(reader, first + 1)
            pause.wait(dice.uniform(0.0, 0.02))
            process.kill()
            process.wait(DEADLINE_S)
        row = reader.runner(0)
        assert row is not None
        assert row == told_apart(row.served)
        first = row.served + 1
    board.put_runner(0, told_apart(first))
    assert reader.runner(0) == told_apart(first)
    reader.close()


def test_an_unlinked_board_still_joins_processes(board: Board, tmp_path: Path) -> None:
    reader = Board.open(tmp_path / "board")
    (tmp_path / "board").unlink()
    with writer(board, 1, "flat-out", first=7):
        _await_row(reader, 8, runner=1)
    reader.close()


def _await_row(reader: Board, n: int, *, runner: int = 0) -> None:
    """Wait until *runner* has put row *n* or a later one."""

    def is_there() -> bool:
        row = reader.runner(runner)
        return row is not None and row.served >= n

    until(is_there, within_s=DEADLINE_S, what=f"row {n} of runner {runner}")
