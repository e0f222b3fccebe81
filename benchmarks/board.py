"""
What the board costs: a lookup, a publish, and a reader beside a writer that is killed in mid-write.

Every figure is the median of rounds in which all contenders take turns, so that a busy machine slows all alike.
"""

from __future__ import annotations

import json
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Final

from benchmarks._report import Table, arguments, publish
from falctl.board import codec
from falctl.board import layout as at
from falctl.board.board import Board
from falctl.board.index import HintIndex
from falctl.board.rows import ModelRow, RunnerRow
from falctl.clock import monotonic_s
from falctl.core.types import Epoch, Hint, RunnerId

SIZES: Final = ((4, 3), (8, 32), (64, 256))
"""Runners and hints of each."""
ROUNDS: Final = 15
ROUND_S: Final = 0.01
READ_S: Final = 4.0
BEFORE_DEATH: Final = 20
"""Rows that a writer puts before it dies in the middle of the next one."""

PLAIN: Final = "a dict of this process"
FILE: Final = "JSON file on tmpfs, write and rename"

Work = Callable[[], object]


def main() -> None:
    """Run all three measurements; about a minute."""
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--writer", nargs=2, metavar=("FD", "MODE"), help="run as the writer process of the third"
    )
    options = parser.parse_args()
    if options.writer:
        _write_until_killed(int(options.writer[0]), options.writer[1])
        return
    with tempfile.TemporaryDirectory(prefix="falctl-bench-", dir="/dev/shm") as folder:
        tables = [table for size in SIZES for table in _costs(Path(folder), *size)]
        tables.append(_beside_a_writer(Path(folder)))
    publish("The board", tables, json_path=options.json)


# --- one process: lookup and publish -------------------------------------------------------------


def _costs(folder: Path, runners: int, hints: int) -> Iterator[Table]:
    board = Board.create(folder / "board", runners=runners, gpus=runners)
    rows = [_row(runner, hints) for runner in range(runners)]
    for runner, row in enumerate(rows):
        board.put_runner(runner, row)
    reader = Board.open(folder / "board")
    yield _lookup(reader, rows, size=f"{runners} runners x {hints} hints")
    yield _publish(board, rows[0], folder=folder, size=f"{runners} runners x {hints} hints")
    reader.close()
    board.close()


def _lookup(reader: Board, rows: list[RunnerRow], *, size: str) -> Table:
    index = HintIndex(reader)
    wanted = Hint(f"shared/model-{len(rows[0].hints or ()) // 2}")
    plain = {hint: index.holders(hint) for row in rows for hint in row.hints or ()}
    payloads = [codec.encode(row, capacity_bytes=at.RUNNER_BYTES) for row in rows]

    def scan() -> list[int]:
        decoded = (codec.decode(RunnerRow, payload) for payload in payloads)
        return [runner for runner, row in enumerate(decoded) if wanted in (row.hints or ())]

    assert set(scan()) == index.holders(wanted) == plain[wanted]
    works: dict[str, Work] = {
        PLAIN: lambda: plain.get(wanted),
        "HintIndex.holders, nothing changed": lambda: index.holders(wanted),
        "decode every row and scan": scan,
    }
    goal = "Goal of HintIndex.holders: under 1 us."
    return Table(
        title=f"Lookup, {size}", metrics=("us",), rows=_medians(works), baseline=PLAIN, notes=(goal,)
    )


def _publish(board: Board, row: RunnerRow, *, folder: Path, size: str) -> Table:
    index = HintIndex(board)
    other = replace(row, hints=(*(row.hints or ())[1:], Hint("new/model")))
    turns = count()

    def to_file() -> None:
        (folder / "row.new").write_text(json.dumps(asdict(row)))
        (folder / "row.new").rename(folder / "row")

    def put_and_look(second: RunnerRow) -> None:
        board.put_runner(0, second if next(turns) % 2 else row)
        index.refresh()

    works: dict[str, Work] = {
        FILE: to_file,
        "put_runner": lambda: board.put_runner(0, row),
        "put_runner and refresh, same hints": lambda: put_and_look(row),
        "put_runner and refresh, a hint changed": lambda: put_and_look(other),
    }
    return Table(title=f"Publish, {size}", metrics=("us",), rows=_medians(works), baseline=FILE)


def _row(runner: int, hints: int) -> RunnerRow:
    shared = [Hint(f"shared/model-{i}") for i in range(hints // 2 + 1)]
    own = [Hint(f"runner-{runner}/model-{i}") for i in range(hints - len(shared))]
    models = tuple(ModelRow(name=name, state="ready", used_at=1234.5, load_s=6.5) for name in shared[:3])
    return RunnerRow(
        epoch=Epoch(1), slots=1, hints=(*shared, *own), models=models, served=1000, beat_at=5678.25
    )


def _medians(works: dict[str, Work]) -> dict[str, dict[str, float]]:
    """Return the median over `ROUNDS` of the microseconds per call of each of *works*, which take turns."""
    calls = {name: _calls_per_round(work) for name, work in works.items()}
    rounds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            rounds[name].append(_round_us(work, calls[name]))
    return {name: {"us": statistics.median(found), "best us": min(found)} for name, found in rounds.items()}


def _calls_per_round(work: Work) -> int:
    work()  # the first call may build what later ones use
    return max(3, int(ROUND_S * 1e6 / _round_us(work, 3)))


def _round_us(work: Work, calls: int) -> float:
    turns = range(calls)
    start = time.perf_counter_ns()
    for _ in turns:
        work()
    return (time.perf_counter_ns() - start) / calls / 1000


# --- two processes: a reader beside a writer -----------------------------------------------------


class _Dying(Board):
    """A writer that dies when half of a row is stored."""

    def _store(self, region: at.Region, payload: bytes) -> None:
        super()._store(region, payload[: len(payload) // 2])
        os.kill(os.getpid(), signal.SIGKILL)


def _beside_a_writer(folder: Path) -> Table:
    rows = {}
    for mode, who in (
        ("", "nobody writes"),
        ("steady", "a row per ms"),
        ("flat-out", "flat out"),
        ("killed", "killed in mid-write"),
    ):
        board = Board.create(folder / "board", runners=1, gpus=0)
        board.put_runner(0, _numbered(1))
        index = HintIndex(board)
        index.refresh()
        with _writer(board, mode):
            rows[f"{who}: Board.runner"] = _read_for(board, READ_S, index=None)
            rows[f"{who}: HintIndex.holders"] = _read_for(board, READ_S, index=index)
        board.close()
    return Table(
        title="A reader beside a writer in another process, 32 hints",
        metrics=(
            "mean us",
            "p99.9 us",
            "worst us",
            "reads #",
            "rows seen #",
            "writers killed #",
            "reads in mid-write #",
            "torn rows #",
        ),
        rows=rows,
        baseline="nobody writes: Board.runner",
        notes=(
            f"Killed: a writer puts {BEFORE_DEATH} rows, dies by SIGKILL with half of the next one stored, and is replaced. "
            "A read in mid-write gives the last good copy: the row was being written, or its writer was dead.",
        ),
    )


def _read_for(board: Board, seconds: float, *, index: HintIndex | None) -> dict[str, float]:
    took: list[int] = []
    seen: set[int] = set()
    epochs: set[int] = set()
    odd = torn = 0
    end_at = monotonic_s() + seconds
    while monotonic_s() < end_at:
        word = memoryview(board.versions()).cast("Q")[at.FIRST_RUNNER]
        start = time.perf_counter_ns()
        row = board.runner(0) if index is None else _through(index)
        took.append(time.perf_counter_ns() - start)
        odd += word % 2
        if row is not None and row.served not in seen:
            seen.add(row.served)
            epochs.add(row.epoch)
            torn += row != _numbered(row.served, epoch=row.epoch)
    took.sort()
    return {
        "mean us": statistics.fmean(took) / 1000,
        "p99.9 us": took[int(len(took) * 0.999)] / 1000,
        "worst us": took[-1] / 1000,
        "reads #": len(took),
        "rows seen #": len(seen),
        "writers killed #": len(epochs) - 1,
        "reads in mid-write #": odd,
        "torn rows #": torn,
    }


def _through(index: HintIndex) -> RunnerRow | None:
    index.holders(Hint("7"))
    return index.row(RunnerId(0))


def _numbered(n: int, *, epoch: int = 1) -> RunnerRow:
    hints = tuple(Hint(f"{n}-{i}") for i in range(32))
    return RunnerRow(epoch=Epoch(epoch), slots=1, hints=hints, served=n, loads=n, beat_at=n)


@contextmanager
def _writer(board: Board, mode: str) -> Iterator[None]:
    if not mode:
        yield
        return
    command = [sys.executable, "-m", "benchmarks.board", "--writer", str(board.fd), mode]
    process = subprocess.Popen(command, pass_fds=(board.fd,), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield
    finally:
        process.terminate()
        process.communicate()


def _write_until_killed(fd: int, mode: str) -> None:
    """Write runner 0 in the given way; ends by SIGTERM, or when standard input closes."""
    print("ready", flush=True)
    if mode == "killed":
        _die_again_and_again(fd)
        return
    board = Board.attach(fd)
    pause_s = 0.001 if mode == "steady" else 0.0
    for n in count(2):
        board.put_runner(0, _numbered(n))
        if (pause_s or n % 1000 == 0) and select.select([sys.stdin], [], [], pause_s)[0]:
            return


def _die_again_and_again(fd: int) -> None:
    for epoch in count(2):
        first = epoch * (BEFORE_DEATH + 1)
        child = os.fork()
        if child == 0:
            board = Board.attach(fd)
            for n in range(first, first + BEFORE_DEATH):
                board.put_runner(0, _numbered(n, epoch=epoch))
            _Dying.attach(fd).put_runner(0, _numbered(first + BEFORE_DEATH, epoch=epoch))
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        if select.select([sys.stdin], [], [], 0)[0]:
            return


if __name__ == "__main__":
    main()
