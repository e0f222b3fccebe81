"""Which errors of a card end its runners, for good or for a moment."""

from __future__ import annotations

import pytest

from falctl.core.xids import XidMeaning, describe, meaning


@pytest.mark.parametrize(
    ("xids", "means"),
    [
        ((13, 31, 43, 45, 68, 109), "application"),
        ((48, 63, 92, 94), "restart"),
        ((64, 74, 79, 95, 119, 120), "lost"),
        ((0, 1, 8, 62, 999), "unknown"),
    ],
)
def test_an_xid_means_one_thing(xids: tuple[int, ...], means: XidMeaning) -> None:
    assert {meaning(xid) for xid in xids} == {means}


def test_an_xid_is_told_with_its_number_and_in_words_where_they_are_known() -> None:
    assert describe(79) == "XID 79, it has fallen off the bus"
    assert describe(7) == "XID 7"
