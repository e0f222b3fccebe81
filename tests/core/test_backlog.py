"""The window of waiting jobs, against a plain list that is sorted anew for every question."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from falctl.core.backlog import Backlog, Change, Entry
from falctl.core.types import Hint, Priority, RequestId

steps = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "remove", "return"]),
        st.sampled_from([None, "a", "b", "c"]),
        st.sampled_from(["normal", "low"]),
        st.integers(0, 40),
    ),
    max_size=60,
)


def test_the_scheduler_hears_about_how_many_are_out_of_its_sight() -> None:
    backlog = Backlog(2)
    heard = [backlog.add(entry(n, "a" if n < 1000 else None)).behind for n in range(1010)]
    counts = [count for news in heard for _, count in news]
    assert counts[:4] == [8, 16, 24, 32]
    assert counts == sorted(counts)
    assert 700 < counts[-1] <= 998
    assert len(counts) < 30, "each costs a decision"
    gone = [backlog.remove(RequestId(f"q{n}")).behind for n in range(1000)]
    assert [news for news in gone if news][-1] == ((Hint("a"), 0),)
    backlog.check()


def entry(
    n: int, hint: str | None = None, *, priority: Priority = "normal", start_by: float | None = None
) -> Entry:
    return Entry(RequestId(f"q{n}"), n, None if hint is None else Hint(hint), priority, start_by)


def apply(shown: set[Entry], change: Change) -> None:
    assert not shown & set(change.show)
    assert shown >= set(change.hide)
    shown.difference_update(change.hide)
    shown.update(change.show)
    assert [e.key for e in change.show] == sorted(e.key for e in change.show)


@given(st.integers(1, 6), steps)
def test_what_is_shown_is_the_window_and_the_first_of_each_hint(
    window_max: int, history: list[tuple[str, str | None, Priority, int]]
) -> None:
    backlog, plain, gone, shown = Backlog(window_max), list[Entry](), list[Entry](), set[Entry]()
    for n, (what, hint, priority, which) in enumerate(history):
        if what == "add":
            one = entry(n, hint, priority=priority, start_by=float(n) if which % 2 else None)
            plain.append(one)
            apply(shown, backlog.add(one))
        elif what == "remove" and plain:
            gone.append(plain.pop(which % len(plain)))
            apply(shown, backlog.remove(gone[-1].request))
        elif what == "return" and gone:
            plain.append(gone.pop(which % len(gone)))
            apply(shown, backlog.add(plain[-1]))
        backlog.check()
        assert set(backlog.shown) == shown
        assert len(backlog) == len(plain)
        assert set(backlog.late(30.0)) == {
            e.request for e in plain if e.start_by is not None and e.start_by <= 30
        }
        for one in plain:
            ahead = [e for e in plain if e.priority == one.priority and e.order < one.order]
            assert backlog.position(one.request) == len(ahead)
            assert backlog.is_shown(one.request) == (one in shown)
        for name in (None, Hint("a")):
            mine = [e for e in plain if e.hint == name]
            assert backlog.counts().get(name, 0) == len(mine)
            assert backlog.hidden(name) == len(set(mine) - shown)


def test_a_job_of_normal_priority_takes_the_place_of_one_that_can_wait() -> None:
    backlog = Backlog(2)
    for n in range(3):
        backlog.add(entry(n, "a", priority="low"))
    assert backlog.add(entry(3, "a")) == Change((entry(3, "a"),), (entry(1, "a", priority="low"),))


def test_what_does_not_wait_has_no_position_and_is_not_removed() -> None:
    backlog = Backlog()
    assert backlog.position(RequestId("q")) is None
    assert RequestId("q") not in backlog
    assert backlog.remove(RequestId("q")) == Change()


def test_one_that_was_not_shown_leaves_unseen() -> None:
    backlog = Backlog(1)
    for n in range(3):
        backlog.add(entry(n, "a"))
    assert backlog.remove(RequestId("q1")) == Change()
    backlog.check()


def test_of_tens_of_thousands_the_scheduler_sees_hundreds() -> None:
    backlog = Backlog()
    for n in range(20_000):
        backlog.add(entry(n, f"model-{n % 40}" if n < 19_999 else "rare"))
    assert len(list(backlog.shown)) == 512 + 1
    for n in range(10_000):
        backlog.remove(RequestId(f"q{n}"))
    assert min(e.order for e in backlog.shown) == 10_000
    assert backlog.position(RequestId("q15000")) == 5_000
    backlog.check()
