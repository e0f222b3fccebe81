"""When a webhook is tried again, and who is called at the same time."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from falctl.core.webhooks import (
    AGE_MAX_S,
    AT_ONCE_MAX,
    AT_ONCE_OF_ONE_MAX,
    RETRIES_MAX,
    Lanes,
    is_delivered,
    pause_s,
    timeout_s,
)


def test_ten_retries_with_doubling_pauses_span_about_two_hours() -> None:
    pauses = [pause_s(tries, age_s=0.0) for tries in range(1, RETRIES_MAX + 1)]
    known = [pause for pause in pauses if pause is not None]
    assert len(known) == len(pauses) == 10
    assert all(later == 2 * earlier for earlier, later in pairwise(known))
    assert 7000 < sum(known) <= 7200


def test_the_eleventh_failure_is_the_last() -> None:
    assert pause_s(RETRIES_MAX, age_s=0.0) is not None
    assert pause_s(RETRIES_MAX + 1, age_s=0.0) is None


def test_one_that_is_a_day_old_is_given_up() -> None:
    assert pause_s(1, age_s=AGE_MAX_S - 1) is not None
    assert pause_s(1, age_s=AGE_MAX_S) is None


def test_the_first_try_is_shorter_than_the_others() -> None:
    assert (timeout_s(0), timeout_s(1), timeout_s(10)) == (15.0, 120.0, 120.0)


def test_only_a_2xx_ends_it() -> None:
    assert [status for status in (100, 199, 200, 204, 299, 300, 302, 404, 500) if is_delivered(status)] == [
        200,
        204,
        299,
    ]


def test_a_receiver_that_never_answers_leaves_room_for_others() -> None:
    lanes = Lanes()
    taken = [job for job in range(1000) if lanes.take(job, "http://slow:80")]
    assert len(taken) == AT_ONCE_OF_ONE_MAX
    assert lanes.full == ("http://slow:80",)
    assert lanes.take(1000, "http://other:80")
    lanes.release(taken[0])
    assert lanes.full == ()
    assert lanes.take(1001, "http://slow:80")


def test_only_so_many_are_called_at_once_whoever_they_are() -> None:
    lanes = Lanes()
    assert [job for job in range(100) if lanes.take(job, f"http://h{job}:80")] == list(range(AT_ONCE_MAX))
    assert lanes.free == 0
    lanes.release(0)
    assert lanes.take(100, "http://h100:80")


def test_nobody_is_called_twice_about_one_job() -> None:
    lanes = Lanes()
    assert lanes.take(1, "a")
    assert not lanes.take(1, "a")
    assert lanes.jobs == (1,)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 99), st.integers(0, 20))))
def test_the_bounds_hold_whatever_is_taken_and_released(steps: list[tuple[bool, int, int]]) -> None:
    lanes, held = Lanes(), dict[int, str]()
    for takes, job, receiver in steps:
        if takes:
            fits = (
                job not in held
                and len(held) < AT_ONCE_MAX
                and list(held.values()).count(str(receiver)) < AT_ONCE_OF_ONE_MAX
            )
            assert lanes.take(job, str(receiver)) == fits
            held |= {job: str(receiver)} if fits else {}
        elif job in held:
            lanes.release(job)
            del held[job]
        assert set(lanes.jobs) == set(held)
        assert lanes.free == AT_ONCE_MAX - len(held)
