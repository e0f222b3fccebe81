"""The waiting queue against a plain list that is sorted anew for every question."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from falctl.core.queue import Waiting, WaitingQueue
from falctl.core.types import Hint, RequestId, Wanted

operations = st.lists(
    st.tuples(
        st.sampled_from(["add", "pop", "bounce"]),
        st.sampled_from([None, "a", "b"]),
        st.integers(0, 5),
        st.integers(0, 30),
    ),
    max_size=60,
)


@given(operations)
def test_it_answers_as_a_list_would(steps: list[tuple[str, str | None, int, int]]) -> None:
    queue, plain = WaitingQueue(), list[Waiting]()
    for n, (what, hint, due, which) in enumerate(steps):
        if what == "add":
            wanted = None if hint is None else Wanted(Hint(hint), "header")
            plain.append(Waiting(RequestId(f"q{n}"), wanted, "c", 0.0, n, due=float(due)))
            queue.add(plain[-1])
        elif plain:
            gone = plain[which % len(plain)]
            assert queue.pop(gone.request) is gone
            if what == "bounce":
                queue.add(gone)
            else:
                plain.remove(gone)
        queue.check()
        assert list(queue) == sorted(plain, key=lambda w: w.order)
        for one in (None, Hint("a"), Hint("b")):
            mine = sorted((w for w in plain if w.hint == one), key=lambda w: (w.due, w.order))
            assert queue.count(one) == len(mine)
            if one is not None:
                queue.put_behind(one, which)
            assert queue.head(one) is (mine[0] if mine else None)
        assert {w.request for w in queue.heads()} == {
            queue.head(one).request  # type: ignore[union-attr]
            for one in queue.hints()
        }


def test_who_stands_behind_counts_as_far_as_they_exceed_the_others() -> None:
    queue = WaitingQueue()
    for n, hint in enumerate("aabc"):
        queue.add(Waiting(RequestId(f"q{n}"), Wanted(Hint(hint), "header"), "c", 0.0, n))
    a, b, c, nobody = (Hint(name) for name in ("a", "b", "c", "nobody"))
    queue.put_behind(a, 100)
    queue.put_behind(b, 20)
    assert [queue.count_ahead(hint) for hint in (a, b, c)] == [2 + 100 - 10, 1, 1]
    queue.put_behind(a, 0)
    assert [queue.count_ahead(hint) for hint in (a, b, c)] == [2, 1 + 20, 1]
    queue.put_behind(nobody, 5)
    assert queue.count_ahead(nobody) == 0
    queue.check()
