"""Idle models give way to other programs on the card, by what those have grown, and neither at once nor in fits."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falctl.core.guest import SAMPLES, SETTLE_S, Guest, Look, recovered, share

GiB = 1 << 30
TOTAL = 24 * GiB
RESERVE = GiB


def orders(
    samples: Iterable[tuple[float, float]], *, guest: Guest | None = None, start: float = 0.0
) -> list[float]:
    """Return, in GiB, what each of *samples* orders: (others', ours) in GiB, a second apart."""
    guest = guest or Guest()
    return [
        guest.heed(
            Look(start + at, TOTAL, round((others + ours) * GiB), round(ours * GiB)), reserve_bytes=RESERVE
        )
        / GiB
        for at, (others, ours) in enumerate(samples)
    ]


def test_others_that_grow_into_the_reserve_get_what_is_missing_of_it() -> None:
    assert orders([(1, 18), *[(5.5, 18)] * SAMPLES]) == [0, 0, 0, 0.5]


def test_less_than_the_reserve_does_not_matter_if_others_have_not_grown() -> None:
    """A drawing of ours takes the rest of the card, and gives it back."""
    assert not any(orders([(1, 18), *[(1, 22.8)] * 60, (1, 18)]))


def test_only_the_growth_is_given_way_to_when_our_own_drawing_takes_the_rest() -> None:
    assert orders([(1, 18), *[(1.25, 22.5)] * SAMPLES])[-1] == 0.25


def test_growth_that_leaves_the_reserve_free_asks_for_nothing() -> None:
    assert not any(orders([(others / 10, 10) for others in range(130)]))


def test_others_that_were_there_before_us_are_given_way_to_at_the_start() -> None:
    assert orders([(20, 3.5)] * SAMPLES)[-1] == 0.5


def test_a_sample_or_two_is_no_reason_and_the_count_begins_anew() -> None:
    calm, short = (1, 18), (5.5, 18)
    assert not any(orders([calm, *[*[short] * (SAMPLES - 1), calm] * 5]))
    own = (1, 22.5)
    assert not any(orders([calm, *[*[short] * (SAMPLES - 1), own] * 5]))


def test_the_least_of_what_the_samples_ask_for_counts() -> None:
    """The two sides are not sampled at one instant: the first one saw a drawing of ours as somebody else's."""
    assert orders([(1, 18), (8, 15.9), (5.25, 18), (5.5, 18)])[-1] == 0.25


def test_after_an_order_nothing_is_asked_until_its_effect_must_be_seen() -> None:
    ordered = orders([(1, 18), *[(6, 18)] * 20])
    at = [i for i, order in enumerate(ordered) if order]
    assert at == [SAMPLES, SAMPLES + SETTLE_S + SAMPLES - 1]
    assert {ordered[i] for i in at} == {1.0}


def test_what_gave_way_is_not_asked_for_again_when_others_stay_as_they_are() -> None:
    guest = Guest()
    assert orders([(1, 18), *[(6, 18)] * SAMPLES], guest=guest)[-1] == 1
    # Less left than was asked for, as parts are whole; then a drawing of ours needs the room again.
    assert not any(orders([(6, 16), *[(6, 17.5)] * 30], guest=guest, start=20.0))


def test_a_sample_that_was_seen_before_counts_once() -> None:
    guest = Guest()
    orders([(1, 18)], guest=guest)
    look = Look(10.0, TOTAL, 24 * GiB, 18 * GiB)
    assert not any(guest.heed(look, reserve_bytes=RESERVE) for _ in range(10 * SAMPLES))


def test_a_card_that_says_nonsense_asks_for_no_more_than_the_reserve() -> None:
    guest = Guest()
    looks = [Look(float(i), GiB, 40 * GiB, 50 * GiB * (i % 2)) for i in range(100)]
    assert max(guest.heed(look, reserve_bytes=RESERVE) for look in looks) <= RESERVE


@given(st.lists(st.tuples(st.floats(0, 12), st.floats(0, 12)), max_size=60))
def test_an_order_never_exceeds_what_is_missing_nor_comes_twice_in_a_settling_time(
    samples: list[tuple[float, float]],
) -> None:
    guest, last = Guest(), float("-inf")
    for at, (others, ours) in enumerate(samples):
        look = Look(float(at), 16 * GiB, round((others + ours) * GiB), round(ours * GiB))
        if order := guest.heed(look, reserve_bytes=RESERVE):
            assert order <= RESERVE - look.free_bytes
            assert at - last >= SETTLE_S
            last = at


@pytest.mark.parametrize(
    ("nbytes", "sharers", "part"), [(100, 1, 100), (100, 3, 34), (0, 4, 0), (100, 0, 100)]
)
def test_runners_on_one_card_share_what_they_free(nbytes: int, sharers: int, part: int) -> None:
    assert share(nbytes, sharers) == part
    assert share(nbytes, sharers) * max(1, sharers) >= nbytes


def test_three_quarters_of_what_was_given_back_is_enough_to_go_on() -> None:
    assert recovered(before_bytes=10, now_bytes=85, given_back_bytes=100)
    assert not recovered(before_bytes=10, now_bytes=84, given_back_bytes=100)
    assert recovered(before_bytes=10, now_bytes=10, given_back_bytes=0)
