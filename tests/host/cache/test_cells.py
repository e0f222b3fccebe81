"""Which stretches of a buffer are complete."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from falctl.host.cache.cells import Cells


def test_a_cell_is_complete_with_its_last_byte_and_told_once() -> None:
    cells = Cells(25, [(0, 10), (12, 13)], cell_bytes=10)
    assert cells.complete([(0, 9)]) == []
    assert cells.complete([(9, 1)]) == [(0, 10)]
    assert cells.complete([(18, 7)]) == [(20, 5)]
    assert cells.complete([(12, 6)]) == [(10, 10)], (
        "the two bytes of which nothing is expected are not waited for"
    )


def test_one_write_may_complete_many_cells_and_one_cell_many_writes() -> None:
    assert Cells(40, [(0, 40)], cell_bytes=10).complete([(0, 40)]) == [(0, 10), (10, 10), (20, 10), (30, 10)]
    assert Cells(10, [(0, 3), (4, 2)], cell_bytes=10).complete([(0, 3), (4, 2)]) == [(0, 10)]


def test_where_nothing_is_expected_nothing_is_told() -> None:
    assert Cells(30, [(5, 2)], cell_bytes=10).complete([(5, 2)]) == [(0, 10)]
    assert Cells(0, [], cell_bytes=10).complete([]) == []


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(1, 50), st.randoms())
def test_whatever_the_order_each_byte_is_told_once_and_never_before_it_is_written(
    sizes: list[int], cell_bytes: int, dice: object
) -> None:
    begins = [sum(sizes[:i]) for i in range(len(sizes))]
    ranges = list(zip(begins, sizes, strict=True))
    cells = Cells(sum(sizes), ranges, cell_bytes=cell_bytes)
    dice.shuffle(ranges)  # type: ignore[attr-defined]  # hypothesis gives a random.Random
    written, told = set[int](), list[int]()
    for begin, size in ranges:
        written |= set(range(begin, begin + size))
        for at, length in cells.complete([(begin, size)]):
            told += range(at, at + length)
            assert written.issuperset(range(at, at + length))
    assert sorted(told) == list(range(sum(sizes)))


def test_many_threads_may_write() -> None:
    cells = Cells(4000, [(0, 4000)], cell_bytes=100)
    told: list[tuple[int, int]] = []

    def write(first: int) -> None:
        for at in range(first, 4000, 4):
            told.extend(cells.complete([(at, 1)]))

    threads = [threading.Thread(target=write, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) == [(at, 100) for at in range(0, 4000, 100)]
