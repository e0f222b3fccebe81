"""Of models without bytes only so many are remembered, and those that were used last."""

from __future__ import annotations

from falctl.core.skeletons import SKELETON_BYTES_MAX, SKELETONS_MAX, Skeleton, outlived

NAMES = "abcd"


def some(*sizes: int) -> list[Skeleton]:
    """The last was used the longest ago."""
    return [Skeleton(name, -i, size) for i, (name, size) in enumerate(zip(NAMES, sizes, strict=False))]


def test_those_that_were_used_the_longest_ago_are_forgotten_beyond_a_number() -> None:
    assert outlived(some(1, 1, 1, 1), number_max=2) == ("d", "c")
    assert outlived(some(1, 1), number_max=2) == ()
    assert outlived(some(*[0] * 4), number_max=0) == ("d", "c", "b", "a")


def test_and_beyond_what_they_hold_together() -> None:
    assert outlived(some(5, 3, 4, 1), bytes_max=8) == ("d", "c")
    assert outlived(some(9), bytes_max=8) == ("a",)
    assert outlived([], bytes_max=-1) == ()


def test_the_bounds_are_these_unless_others_are_said() -> None:
    many = [Skeleton(str(i), i, 0) for i in range(SKELETONS_MAX + 1)]
    assert outlived(many) == ("0",)
    assert outlived(some(SKELETON_BYTES_MAX, 1)) == ("b",)
