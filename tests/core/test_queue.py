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
            assert queue.head(one) is (mine[0] if mine else None)
        assert {w.request for w in queue.heads()} == {
            queue.head(one).request  # type: ignore[union-attr]
            for one in queue.hints()
        }
