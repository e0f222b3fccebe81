"""Ended requests, numbered, with what each cost."""

from __future__ import annotations

import pytest

from falctl.core import ended as ended_module
from falctl.core.costs import Costs
from falctl.core.ended import Ended, EndedRing
from falctl.core.events import Released
from falctl.core.fleet import Runner, Running
from falctl.core.queue import Waiting
from falctl.core.types import Epoch, Hint, RequestId, RunnerId, Wanted

E1 = Epoch(1)


class Book:
    """A ring, and requests that end one after the other on one runner."""

    def __init__(self, size: int = 100) -> None:
        self.ring = EndedRing(size)
        self.costs = Costs()
        self.runner = Runner(RunnerId(0), E1, 2, None)

    def end(
        self, hint: str | None, exec_s: float | None, load_s: float | None, *, warm: bool = True
    ) -> Ended:
        wanted = None if hint is None else Wanted(Hint(hint), "header")
        waiting = Waiting(RequestId("q"), wanted, "client", 7.0, 1)
        running = Running(waiting.hint, 8.0, warm)
        event = Released(RequestId("q"), RunnerId(0), E1, exec_s, load_s)
        self.ring.ended(event, waiting, self.runner, running, self.costs)
        return self.ring.after(self.ring.count - 1, most=1)[0]


def test_a_request_is_told_with_its_costs_as_the_host_told_them() -> None:
    book = Book()
    book.costs.declare(Hint("x"), 5 << 30)
    assert book.end("x", 2.0, 8.0) == Ended(1, 7.0, Hint("x"), "client", 2.0, 8.0, 5 << 30)


def test_a_hit_costs_what_the_last_load_of_its_model_did() -> None:
    book = Book()
    book.end("x", 2.0, 8.0)
    book.end("y", 2.0, 3.0)
    assert book.end("x", 2.5, 0.0).load_s == 8.0
    book.ring.loaded(Hint("x"), 6.0)
    assert book.end("x", 2.5, 0.0).load_s == 6.0, "a load job tells, too"


def test_a_hit_whose_load_only_an_earlier_router_saw_costs_what_was_learnt() -> None:
    book = Book()
    assert book.end("x", 2.0, 0.0).load_s is None, "nobody has seen one"
    book.costs.loaded(Hint("x"), "disk", 4.0)
    assert book.end("x", 2.0, 0.0).load_s == 4.0


def test_a_request_that_joined_the_load_of_another_does_not_make_it_shorter() -> None:
    book = Book()
    assert book.end("x", 2.0, 8.0).load_s == 8.0
    book.runner.in_use[RequestId("other")] = Running(Hint("x"), 0.0)
    assert book.end("x", 2.0, 3.0).load_s == 8.0
    book.runner.in_use.clear()
    assert book.end("x", 2.0, 3.0).load_s == 3.0, "alone it was a load of its own"


def test_a_cold_run_of_unknown_parts_is_split_by_what_warm_runs_took() -> None:
    book = Book()
    whole = book.end("x", 10.0, None, warm=False)
    assert (whole.exec_s, whole.load_s) == (10.0, None), "nothing is known yet"
    book.costs.executed(Hint("x"), "", 2.0)
    split = book.end("x", 10.0, None, warm=False)
    assert (split.exec_s, split.load_s) == (2.0, 8.0)
    short = book.end("x", 1.5, None, warm=False)
    assert (short.exec_s, short.load_s) == (1.5, 0.0)
    assert book.end("x", 2.5, None).exec_s == 2.5, "a warm run has no load in it"


def test_a_request_that_failed_or_wanted_no_model_is_counted_too() -> None:
    book = Book()
    failed = book.end("x", None, None, warm=False)
    assert (failed.number, failed.exec_s) == (1, None)
    assert book.end(None, 1.0, None) == Ended(2, 7.0, None, "client", 1.0, 0.0, None)


def test_what_ended_after_a_number_is_read_once_and_in_parts() -> None:
    book = Book(size=5)
    for _ in range(8):
        book.end("x", 1.0, 1.0)

    def numbers(after: int, most: int = 100) -> list[int]:
        return [e.number for e in book.ring.after(after, most=most)]

    assert numbers(8) == []
    assert numbers(6) == [7, 8]
    assert numbers(3, 2) == [4, 5]
    assert numbers(0) == [4, 5, 6, 7, 8], "the first three are forgotten: a gap in the numbers"
    assert numbers(99) == []


def test_the_loads_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ended_module, "HINTS_MAX", 2)
    book = Book()
    for hint in ("a", "b", "a", "c"):
        book.ring.loaded(Hint(hint), 4.0)
    assert [book.end(h, 1.0, 0.0).load_s for h in "abc"] == [4.0, None, 4.0]
