from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falctl.core.rates import BUCKET_S, LatencyWindow, RateWindow


def test_a_rate_is_the_events_of_the_window_over_its_length() -> None:
    window = RateWindow(window_s=60.0, started_at=0.0)
    for second in range(100, 160):
        window.add(now=second)
        window.add(now=second + 0.5)
    assert window.rate(now=159.9) == pytest.approx(2.0)


def test_what_is_older_than_the_window_counts_no_more() -> None:
    window = RateWindow(window_s=60.0, started_at=0.0)
    window.add(now=100.0)
    assert window.rate(now=159.9) > 0
    assert window.rate(now=160.0) == 0


def test_a_young_window_is_as_long_as_its_age() -> None:
    window = RateWindow(window_s=60.0, started_at=0.0)
    for second in range(10):
        window.add(now=second)
    assert window.rate(now=10.0) == pytest.approx(1.0)


def test_a_window_without_events_has_rate_zero_at_once() -> None:
    assert RateWindow(window_s=60.0, started_at=5.0).rate(now=5.0) == 0


@given(st.lists(st.floats(0, 200), max_size=200).map(sorted))
def test_the_rate_counts_each_event_for_the_window_and_at_most_a_bucket_less(times: list[float]) -> None:
    window = RateWindow(window_s=60.0, started_at=-1000.0)
    for now in times:
        window.add(now=now)
    counted = round(window.rate(now=200.0) * 60.0)
    assert sum(t > 140.0 + BUCKET_S for t in times) <= counted <= sum(t > 140.0 for t in times)


def test_quantiles_of_nothing_are_zero() -> None:
    assert LatencyWindow(size=4).quantiles(0.5, 0.95) == (0.0, 0.0)


def test_quantiles_are_durations_that_the_share_does_not_exceed() -> None:
    window = LatencyWindow(size=100)
    for value in range(1, 101):
        window.add(value)
    assert window.quantiles(0.5, 0.95, 1.0) == (51, 96, 100)


def test_only_the_last_durations_count() -> None:
    window = LatencyWindow(size=2)
    for value in (100.0, 1.0, 2.0):
        window.add(value)
    assert window.quantiles(1.0) == (2.0,)
