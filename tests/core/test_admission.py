from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falctl.core.admission import ByteBudget


def test_what_does_not_fit_is_not_lent() -> None:
    budget = ByteBudget(limit_bytes=10)
    assert budget.reserve(6)
    assert not budget.reserve(5)
    assert budget.used_bytes == 6
    assert budget.reserve(4)


def test_what_is_given_back_can_be_lent_again() -> None:
    budget = ByteBudget(limit_bytes=10)
    assert budget.reserve(10)
    budget.release(10)
    assert budget.reserve(10)


def test_a_lower_limit_takes_nothing_back_but_lends_nothing_more() -> None:
    budget = ByteBudget(limit_bytes=10)
    assert budget.reserve(10)
    budget.limit_bytes = 5
    budget.release(4)
    assert budget.used_bytes == 6
    assert not budget.reserve(1)


def test_giving_back_more_than_was_lent_is_a_bug() -> None:
    budget = ByteBudget(limit_bytes=10)
    with pytest.raises(AssertionError, match="more was given back"):
        budget.release(1)


@given(st.lists(st.integers(0, 50)))
def test_never_more_than_the_limit_is_lent(sizes: list[int]) -> None:
    budget = ByteBudget(limit_bytes=100)
    lent = []
    for size in sizes:
        if budget.reserve(size):
            lent.append(size)
        assert budget.used_bytes == sum(lent) <= 100
    for size in lent:
        budget.release(size)
    assert budget.used_bytes == 0
