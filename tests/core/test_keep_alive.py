"""An idle model leaves the device after its time, and host memory after the same time again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falctl.core.keep_alive import Due, due, keep_until
from falctl.core.residency import Held, Part, Tier

VRAM, RAM, DISK = (Part(tier, 1, tier) for tier in ("vram", "ram", "disk"))  # type: ignore[arg-type]


def model(*parts: Part, keep_alive_s: float | None = 10.0, **facts: int | bool) -> Held:
    return Held("m", parts, used_at=100.0, keep_alive_s=keep_alive_s, **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (109.9, Due((), (), 110.0)),
        (110.0, Due(("vram",), (), 120.0)),
        (120.0, Due(("vram",), ("vram", "ram"), None)),
    ],
)
def test_it_leaves_the_device_then_host_memory(now: float, expected: Due) -> None:
    assert due([model(VRAM, RAM, DISK)], now=now) == expected


def test_what_is_in_host_memory_alone_is_due_at_the_second_time() -> None:
    assert due([model(RAM)], now=115.0) == Due((), (), 120.0)


def test_a_part_that_host_memory_does_not_have_has_nothing_to_drop() -> None:
    assert due([model(Part("a", 1, "vram", host=False))], now=130.0) == Due(("a",), (), None)


def test_no_time_at_all_means_at_once() -> None:
    assert due([model(VRAM, keep_alive_s=0.0)], now=100.0) == Due(("vram",), ("vram",), None)


@pytest.mark.parametrize(
    "kept", [model(VRAM, keep_alive_s=None), model(VRAM, leases=1), model(VRAM, pinned=True)]
)
def test_one_that_may_stay_for_ever_or_is_leased_or_pinned_is_never_due(kept: Held) -> None:
    assert due([kept], now=1e9) == Due((), (), None)
    assert due([kept, model(VRAM)], now=1e9) == Due((), (), None), "nor is what others share with it"
    assert keep_until(kept, tier="vram") is None


@pytest.mark.parametrize(("tier", "at"), [("vram", 110.0), ("ram", 120.0), ("disk", None)])
def test_a_model_says_until_when_it_is_kept(tier: Tier, at: float | None) -> None:
    assert keep_until(model(VRAM), tier=tier) == at


@given(
    st.lists(
        st.builds(
            Held,
            st.sampled_from("abc"),
            st.lists(st.sampled_from((VRAM, RAM, DISK)), unique=True).map(tuple),
            used_at=st.integers(0, 20).map(float),
            leases=st.sampled_from((0, 0, 1)),
            keep_alive_s=st.sampled_from((None, 0.0, 5.0, 10.0)),
        )
    ),
    st.integers(0, 60).map(float),
)
def test_the_next_time_is_later_and_until_then_nothing_more_is_due(held: list[Held], now: float) -> None:
    found = due(held, now=now)
    if found.next_at is None:
        later = due(held, now=1e9)
    else:
        assert found.next_at > now
        later = due(held, now=(now + found.next_at) / 2)
        assert due(held, now=found.next_at) != found
    assert (set(later.evict), set(later.drop) - set(found.evict)) == (
        set(found.evict),
        set(found.drop) - set(found.evict),
    )
