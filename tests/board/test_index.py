from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falctl.board import layout as at
from falctl.board.board import READ_TRIES, Board
from falctl.board.index import HintIndex
from falctl.board.rows import RunnerRow
from falctl.core.types import Hint, RunnerId
from tests.board import samples

R0, R1 = RunnerId(0), RunnerId(1)
A, B, C = Hint("a"), Hint("b"), Hint("c")


class Counted(Board):
    """A reader that notes which runners it is asked for."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.asked: list[int] = []

    def numbered_runner(self, runner: int) -> tuple[int, RunnerRow | None]:
        self.asked.append(runner)
        return super().numbered_runner(runner)


@pytest.fixture
def reader(board: Board, tmp_path: Path) -> Iterator[Counted]:
    made = Counted.open(tmp_path / "board")
    assert isinstance(made, Counted)
    yield made
    made.close()


@pytest.fixture
def index(reader: Counted) -> HintIndex:
    return HintIndex(reader)


def test_an_empty_board_has_no_holders_and_no_changes(index: HintIndex) -> None:
    assert index.refresh() == ()
    assert index.holders(A) == frozenset()
    assert index.row(R0) is None


def test_holders_follow_the_rows(board: Board, index: HintIndex) -> None:
    board.put_runner(0, samples.runner_row(hints=("a", "b")))
    board.put_runner(1, samples.runner_row(hints=("b",)))
    assert [index.holders(h) for h in (A, B, C)] == [{R0}, {R0, R1}, set()]
    board.put_runner(0, samples.runner_row(hints=("c", "b", "b")))
    assert [index.holders(h) for h in (A, B, C)] == [set(), {R0, R1}, {R0}]
    board.put_runner(1, samples.runner_row(hints=None))
    assert [index.holders(h) for h in (A, B, C)] == [set(), {R0}, {R0}]
    board.reset_runner(0)
    assert [index.holders(h) for h in (A, B, C)] == [set(), set(), set()]
    assert index.row(R0) is None


def test_a_board_with_rows_is_read_when_first_asked(board: Board, reader: Counted) -> None:
    board.put_runner(1, samples.told_apart(3))
    index = HintIndex(reader)
    assert index.refresh() == (R1,)
    assert index.row(R1) == samples.told_apart(3)


def test_each_change_is_told_once_even_if_a_lookup_saw_it_first(board: Board, index: HintIndex) -> None:
    board.put_runner(1, samples.runner_row(hints=("a",)))
    assert index.holders(A) == {R1}
    board.put_runner(0, samples.runner_row(hints=("a",)))
    assert index.refresh() == (R0, R1)
    assert index.refresh() == ()


def test_only_regions_that_changed_are_read_again(board: Board, reader: Counted, index: HintIndex) -> None:
    board.put_runner(0, samples.told_apart(1))
    board.put_runner(1, samples.told_apart(2))
    index.refresh()
    assert reader.asked == [0, 1]
    reader.asked.clear()
    board.put_life(0, samples.life_row())
    board.put_router(samples.router_row())
    assert index.refresh() == ()
    assert reader.asked == []
    board.put_runner(1, samples.told_apart(3))
    assert index.refresh() == (R1,)
    assert reader.asked == [1]


def test_a_dead_writers_row_stays_and_is_not_looked_at_again_until_it_changes(
    board: Board, reader: Counted, index: HintIndex
) -> None:
    board.put_runner(0, samples.runner_row(hints=("a",)))
    index.refresh()
    region = board.layout.regions()[board.layout.runner(0)]
    board._words[region.word] |= 1
    reader.asked.clear()
    for _ in range(5):
        assert index.holders(A) == {R0}
    assert reader.asked == [0]
    assert index.refresh() == ()
    board.put_runner(0, samples.runner_row(hints=("b",)))
    assert [index.holders(A), index.holders(B)] == [set(), {R0}]


def test_a_row_that_is_complete_but_not_yet_readable_is_tried_until_it_is(
    board: Board, reader: Counted, index: HintIndex
) -> None:
    board.put_runner(0, samples.runner_row(hints=("a",)))
    index.refresh()
    board.put_runner(0, samples.runner_row(hints=("b",)))
    region = board.layout.regions()[board.layout.runner(0)]
    board._map[region.start] ^= 1
    assert [index.holders(A), index.holders(B)] == [{R0}, set()]
    board._map[region.start] ^= 1
    assert [index.holders(A), index.holders(B)] == [set(), {R0}]
    assert index.refresh() == (R0,)
    reader.asked.clear()
    assert index.holders(B) == {R0}
    assert reader.asked == []


def test_retries_are_bounded_while_a_row_is_not_readable(
    board: Board, reader: Counted, index: HintIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    board.put_runner(0, samples.runner_row(hints=("a",)))
    region = board.layout.regions()[board.layout.runner(0)]
    board._map[region.start] ^= 1
    copies = 0
    copy = reader._copy

    def counted(region: at.Region) -> tuple[int, bytes]:
        nonlocal copies
        copies += 1
        return copy(region)

    monkeypatch.setattr(reader, "_copy", counted)
    assert index.holders(A) == set()
    assert copies == READ_TRIES


def test_hints_that_nobody_holds_any_more_take_no_memory(board: Board, index: HintIndex) -> None:
    for n in range(50):
        board.put_runner(0, samples.runner_row(hints=(f"{n}", "kept")))
        index.refresh()
    assert set(index._holders) == {"49", "kept"}


STEPS = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.one_of(st.just("reset"), st.none(), st.lists(st.sampled_from("abcdef"), max_size=5)),
        st.booleans(),
    ),
    max_size=30,
)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """One board of four runners for all examples: making the file is what takes the time."""
    made = Board.create(tmp_path_factory.mktemp("wide") / "board", runners=4, gpus=0)
    yield made
    made.close()


@given(STEPS)
def test_holders_are_what_a_scan_of_all_rows_finds(
    wide: Board, steps: list[tuple[int, str | list[str] | None, bool]]
) -> None:
    for runner in range(4):
        wide.reset_runner(runner)
    index = HintIndex(wide)
    index.refresh()
    rows: list[RunnerRow | None] = [None] * 4
    touched: set[int] = set()
    for runner, what, look in steps:
        touched.add(runner)
        if what == "reset":
            rows[runner] = None
            wide.reset_runner(runner)
        else:
            rows[runner] = row = samples.runner_row(hints=None if what is None else tuple(what))
            wide.put_runner(runner, row)
        if look:
            for hint in map(Hint, "abcdef"):
                assert index.holders(hint) == _scan(rows, hint)
    changed = set(index.refresh())
    assert {i for i in touched if rows[i] is not None} <= changed <= touched
    assert [index.row(RunnerId(i)) for i in range(4)] == rows


def _scan(rows: list[RunnerRow | None], hint: Hint) -> set[int]:
    return {i for i, row in enumerate(rows) if row and hint in (row.hints or ())}
