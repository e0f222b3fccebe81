"""A plan to make room drops only what is unpinned, the least recently used first, and no more than it must."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from falctl.core.residency import Resident, victims


@st.composite
def caches(draw: st.DrawFn) -> tuple[Resident, ...]:
    names = draw(st.lists(st.text(min_size=1, max_size=3), unique=True, max_size=12))
    return tuple(
        Resident(name, "ready", draw(st.integers(0, 5)) / 1.0, leases=draw(st.sampled_from((0, 0, 1, 2))))
        for name in names
    )


BOUNDS = st.integers(1, 8)
INCOMING = st.integers(0, 2)


@given(caches(), BOUNDS, INCOMING)
def test_a_pinned_model_never_leaves(cache: tuple[Resident, ...], models_max: int, incoming: int) -> None:
    pinned = {r.name for r in cache if r.leases}
    assert pinned.isdisjoint(victims(cache, models_max=models_max, incoming=incoming))


@given(caches(), BOUNDS, INCOMING)
def test_afterwards_it_fits_or_all_that_is_left_is_pinned(
    cache: tuple[Resident, ...], models_max: int, incoming: int
) -> None:
    leaving = victims(cache, models_max=models_max, incoming=incoming)
    left = [r for r in cache if r.name not in leaving]
    assert len(left) + incoming <= models_max or all(r.leases for r in left)


@given(caches(), BOUNDS, INCOMING)
def test_no_more_leave_than_must(cache: tuple[Resident, ...], models_max: int, incoming: int) -> None:
    leaving = victims(cache, models_max=models_max, incoming=incoming)
    assert len(leaving) <= max(0, len(cache) + incoming - models_max)
    assert len(set(leaving)) == len(leaving)


@given(caches(), BOUNDS, INCOMING)
def test_whatever_leaves_was_used_no_later_than_what_could_have_left(
    cache: tuple[Resident, ...], models_max: int, incoming: int
) -> None:
    leaving = victims(cache, models_max=models_max, incoming=incoming)
    used = {r.name: r.used_at for r in cache}
    stayed = [r.used_at for r in cache if not r.leases and r.name not in leaving]
    assert all(used[name] <= at for name in leaving for at in stayed)
    assert [used[name] for name in leaving] == sorted(used[name] for name in leaving)


def test_of_two_used_at_the_same_instant_the_first_leaves() -> None:
    cache = [Resident("a", "ready", 1.0, leases=0), Resident("b", "ready", 1.0, leases=0)]
    assert victims(cache, models_max=2, incoming=1) == ("a",)
