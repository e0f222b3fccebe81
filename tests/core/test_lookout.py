"""What happens while nobody looks is not seen, and all the rest is."""

from __future__ import annotations

from falctl.core.lookout import GAP_S, GAPS_MAX, Lookout, watched_s


def test_time_counts_from_the_first_look_and_without_the_gaps() -> None:
    lookout = Lookout()
    for now in (100.0, 100.25, 100.25 + GAP_S, 200.0, 200.25):
        lookout.look(now=now)
    seen = 0.25 + GAP_S + 0.25
    assert watched_s(0.0, lookout.gaps, now=200.25) == seen
    assert watched_s(100.0, lookout.gaps, now=200.25) == seen
    assert watched_s(150.0, lookout.gaps, now=200.25) == 0.25
    assert watched_s(200.0, lookout.gaps, now=201.0) == 1.0


def test_who_is_stopped_again_and_again_sees_a_hang_all_the_same() -> None:
    lookout, now = Lookout(), 0.0
    for _ in range(3 * GAPS_MAX):
        lookout.look(now=now)
        lookout.look(now=now + 1.0)
        now += 5.0  # four of five seconds are lost
    assert len(lookout.gaps) == GAPS_MAX
    assert watched_s(now - 100.0, lookout.gaps, now=now - 4.0) == 20.0
