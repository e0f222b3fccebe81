"""How fast places turn free: only while something waits, and from whatever is known."""

from __future__ import annotations

import pytest

from falctl.core.pace import STARTS_MAX, Pace


def test_before_anything_has_left_the_prior_is_all_there_is() -> None:
    pace = Pace()
    pace.watch(waiting=True, now=10.0)
    assert pace.gap_s(prior_s=4.0, now=10.0) == 4.0


def test_an_estimate_grows_while_nothing_leaves() -> None:
    pace = Pace()
    pace.watch(waiting=True, now=0.0)
    pace.leave("a", now=2.0)
    assert pace.gap_s(prior_s=2.0, now=2.0) == pytest.approx(2.0)
    assert pace.gap_s(prior_s=2.0, now=100.0) == pytest.approx(51.0)


def test_time_in_which_nothing_waits_does_not_count() -> None:
    pace = Pace()
    for begin in (0.0, 1000.0, 2000.0):
        pace.watch(waiting=True, now=begin)
        pace.leave("a", now=begin + 3.0)
        pace.watch(waiting=False, now=begin + 3.0)
    assert pace.gap_s(prior_s=3.0, now=5000.0) == pytest.approx(3.0)


def test_a_change_of_pace_is_followed() -> None:
    pace = Pace()
    pace.watch(waiting=True, now=0.0)
    now = 0.0
    for gap_s, count in ((10.0, 500), (1.0, STARTS_MAX)):
        for _ in range(count):
            now += gap_s
            pace.leave("a", now=now)
    assert pace.gap_s(prior_s=1.0, now=now) == pytest.approx(1.0)


def test_shares_start_equal_and_follow_what_happens() -> None:
    pace = Pace()
    assert pace.share("a", clients=4) == 0.25
    assert pace.share("a", clients=0) == 1.0
    for n in range(40):
        pace.leave("ab"[n % 4 == 0], now=float(n))
    assert pace.share("a", clients=2) == pytest.approx(0.75, abs=0.01)
    assert pace.share("new", clients=2) < 0.02
