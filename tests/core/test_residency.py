"""A plan to make room takes nothing that is leased, pinned or shared with such, and no more than it must."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from falctl.core.residency import (
    HALF_LIFE_S,
    Held,
    Part,
    Plan,
    Resident,
    Room,
    Tier,
    loose,
    make_room,
    room_for,
    tier_of,
    value,
    victims,
)

GIB = 1 << 30
KEYS = ("encoder", "big", "vae", "other", "tiny")
SIZES = {"encoder": 4 * GIB, "big": 10 * GIB, "vae": GIB, "other": 7 * GIB, "tiny": 1}


def part(key: str, size: float = 1.0, *, tier: Tier = "vram", once: bool = False) -> Part:
    return Part(key, int(size * GIB), tier, once=once)


def held(name: str, *parts: Part, used_at: float = 0.0, **facts: float | bool) -> Held:
    return Held(name, parts, used_at, reload_s=1.0, **facts)  # type: ignore[arg-type]


@st.composite
def models(draw: st.DrawFn) -> tuple[Held, ...]:
    """Models that share parts, of which a part is in one tier whoever has it."""
    any_tier: st.SearchStrategy[Tier] = st.sampled_from(("vram", "vram", "ram", "disk"))
    tiers = {key: draw(any_tier) for key in KEYS}
    parts = {key: Part(key, SIZES[key], tiers[key], once=key == "encoder") for key in KEYS}
    return tuple(
        Held(
            name,
            tuple(parts[key] for key in draw(st.lists(st.sampled_from(KEYS), unique=True))),
            used_at=draw(st.integers(0, 3)) / 1.0,
            leases=draw(st.sampled_from((0, 0, 0, 1))),
            pinned=draw(st.sampled_from((False, False, False, True))),
            uses=draw(st.integers(0, 3)) / 1.0,
            clock=draw(st.integers(0, 3)) / 1.0,
            reload_s=draw(st.integers(0, 3)) / 1.0,
        )
        for name in draw(st.lists(st.sampled_from("abcdef"), unique=True))
    )


LACKING = st.integers(0, 24 * GIB)
FIRST = st.sets(st.sampled_from("abcdef"))


@given(models(), LACKING, FIRST)
def test_a_part_of_a_leased_or_pinned_model_never_leaves_whoever_else_has_it(
    cache: tuple[Held, ...], lacking: int, first: set[str]
) -> None:
    plan = make_room(lacking, cache, now=4.0, first=first)
    stays = {p.key for m in cache if m.leases or m.pinned for p in m.parts}
    assert plan is None or stays.isdisjoint(plan.keys)


@given(models(), LACKING, FIRST)
def test_what_leaves_suffices_and_none_of_it_could_be_spared_or_all_of_it_would_not_do(
    cache: tuple[Held, ...], lacking: int, first: set[str]
) -> None:
    sizes = {p.key: p.nbytes for p in loose(cache, tier="vram")}
    plan = make_room(lacking, cache, now=4.0, first=first)
    if plan is None:
        assert sum(sizes.values()) < lacking
        return
    assert len(set(plan.keys)) == len(plan.keys)
    freed = sum(sizes[key] for key in plan.keys)
    assert freed >= lacking
    assert all(freed - sizes[key] < lacking for key in plan.keys)


@given(models(), LACKING)
def test_what_a_room_promises_can_be_had(cache: tuple[Held, ...], need: int) -> None:
    for name in "a", "nobody":
        room = room_for(name, cache, free_bytes=2 * GIB, total_bytes=40 * GIB, reserve_bytes=GIB)
        mine = tuple(
            Held(m.name, m.parts, m.used_at, leases=m.leases or int(m.name == name), pinned=m.pinned)
            for m in cache
        )
        plan = make_room(room.lacking(need), mine, now=4.0)
        assert (plan is not None) == (need <= room.most_bytes)


def test_the_model_that_is_least_worth_for_its_bytes_leaves_first() -> None:
    cheap = Held("cheap", (part("a", 8),), 0.0, uses=1, reload_s=1.0)
    used = Held("used", (part("b", 8),), 0.0, uses=5, reload_s=1.0)
    dear = Held("dear", (part("c", 8),), 0.0, uses=1, reload_s=9.0)
    small = Held("small", (part("d", 1),), 0.0, uses=1, reload_s=0.9)
    cache = (dear, used, small, cheap)
    order = [make_room(size * GIB, cache, now=0.0) for size in (8, 16, 17, 25)]
    assert [plan and plan.keys for plan in order] == [
        ("a",),
        ("a", "b"),
        ("a", "b", "d"),
        ("a", "b", "d", "c"),
    ]


def test_the_clock_rises_to_what_left_so_that_old_worth_is_worth_less() -> None:
    old = Held("old", (part("a"),), 0.0, uses=3, reload_s=1.0)
    new = Held("new", (part("b"),), 0.0, uses=1, reload_s=1.0, clock=3.5)
    assert make_room(GIB, (old, new), now=0.0) == Plan(("a",), clock=3.0)
    assert make_room(0, (old, new), now=0.0) == Plan((), clock=0.0)


def test_uses_count_half_after_the_half_life() -> None:
    model = Held("m", (part("a", 2),), 10.0, uses=4, reload_s=3.0, clock=1.0)
    assert value(model, now=10.0) == 7.0
    assert value(model, now=10.0 + HALF_LIFE_S) == 4.0
    assert value(model, now=9.0) == 7.0, "a clock that is read a little earlier makes nobody worth more"


def test_a_model_without_bytes_counts_as_one_of_a_gib() -> None:
    assert value(Held("m", (), 0.0, uses=2, reload_s=3.0), now=0.0) == 6.0


def test_of_one_model_the_part_that_is_used_once_in_a_job_leaves_first() -> None:
    model = held("flux", part("transformer", 22), part("t5", 9, once=True), part("clip", 0.2, once=True))
    for size, leaving in ((0.1, ("clip",)), (5, ("t5",)), (9.1, ("t5", "clip")), (15, ("transformer",))):
        plan = make_room(int(size * GIB), [model], now=0.0)
        assert plan is not None
        assert plan.keys == leaving, size


def test_of_parts_of_equal_worth_the_least_that_suffices_leaves() -> None:
    model = held("m", part("a", 4), part("b", 2), part("c", 7))
    for size, leaving in ((1, ("b",)), (3, ("a",)), (5, ("c",)), (8, ("c", "b"))):
        plan = make_room(size * GIB, [model], now=0.0)
        assert plan is not None
        assert plan.keys == leaving, size


def test_what_turns_out_not_to_be_needed_stays() -> None:
    small, big = held("small", part("s", 0.5)), held("big", part("b", 7), clock=9.0)
    assert make_room(GIB, (small, big), now=0.0) == Plan(("b",), clock=9.0 + 1 / 7)


def test_of_two_that_could_be_spared_the_dearer_is() -> None:
    cache = (
        held("x", part("x", 1.5)),
        held("y", part("y", 1.5), clock=1.0),
        held("z", part("z", 6), clock=9.0),
    )
    plan = make_room(7 * GIB, cache, now=0.0)
    assert plan is not None
    assert plan.keys == ("x", "z")


def test_whom_the_router_named_leaves_first_but_not_with_what_others_have() -> None:
    shared = part("vae")
    named, other = held("named", shared, part("u1", 5), clock=9.0), held("other", shared, part("u2", 5))
    cache = (named, other)
    plans = [make_room(size * GIB, cache, now=0.0, first=("named",)) for size in (5, 6)]
    assert [plan and plan.keys for plan in plans] == [("u1",), ("u1", "u2")]


def test_a_shared_part_is_worth_what_the_dearest_of_its_models_is() -> None:
    shared = part("vae")
    cache = (held("a", shared, part("u1")), held("b", shared, part("u2"), clock=9.0))
    plan = make_room(2 * GIB, cache, now=0.0)
    assert plan is not None
    assert plan.keys[0] == "u1"
    assert plan.clock == 9.5


def test_the_device_has_what_is_free_what_is_its_own_and_what_may_leave() -> None:
    shared = part("vae", 1)
    cache = (
        held("mine", part("u1", 3), shared, part("gone", 9, tier="ram")),
        held("idle", part("u2", 4), shared),
        held("leased", part("u3", 5), leases=1, pinned=True),
        held("pinned", part("u4", 6), pinned=True),
        held("pinned-in-ram", part("u5", 2, tier="ram"), pinned=True),
    )
    room = room_for("mine", cache, free_bytes=2 * GIB, total_bytes=24 * GIB, reserve_bytes=GIB)
    assert room == Room(
        2 * GIB,
        24 * GIB,
        GIB,
        own_bytes=4 * GIB,
        idle_bytes=4 * GIB,
        pinned=(("pinned", 6 * GIB),),
        leased=(("leased", 5 * GIB),),
    )
    assert room.most_bytes == 9 * GIB
    assert [room.lacking(n * GIB) for n in (1, 5, 7)] == [0, 0, 2 * GIB]
    assert room.told(10 * GIB) == (
        "it needs 10.0 GiB, and can have 9.00 GiB of 24.0 GiB; in use: leased (5.00 GiB); "
        "pinned: pinned (6.00 GiB)"
    )


def test_idle_models_make_up_for_a_reserve_of_which_others_have_taken() -> None:
    room = Room(GIB, 24 * GIB, reserve_bytes=3 * GIB, idle_bytes=5 * GIB)
    assert room.most_bytes == 3 * GIB
    assert room.lacking(GIB) == 3 * GIB
    assert room.told(GIB) == "it needs 1.00 GiB, and can have 3.00 GiB of 24.0 GiB"
    assert Room(0, 24 * GIB, reserve_bytes=3 * GIB).most_bytes == 0


def test_host_memory_is_made_room_in_by_the_same_rule() -> None:
    cache = (
        held("a", part("a", 2, tier="ram")),
        held("b", part("b", 2), clock=-1.0),
        held("c", part("c", 2, tier="ram"), clock=1.0),
    )
    plan = make_room(GIB, cache, now=0.0, tier="ram")
    assert plan is not None
    assert plan.keys == ("a",)
    assert make_room(5 * GIB, cache, now=0.0, tier="ram") is None


def test_a_model_is_where_the_lowest_of_its_parts_is() -> None:
    vram, ram, disk = part("a"), part("b", tier="ram"), part("c", tier="disk")
    assert [tier_of(parts) for parts in ((vram,), (vram, ram), (vram, ram, disk), ())] == [
        "vram",
        "ram",
        "disk",
        "disk",
    ]


# Where models are counted


@st.composite
def residents(draw: st.DrawFn) -> tuple[Resident, ...]:
    names = draw(st.lists(st.text(min_size=1, max_size=3), unique=True, max_size=12))
    return tuple(
        Resident(
            name,
            "ready",
            draw(st.integers(0, 5)) / 1.0,
            leases=draw(st.sampled_from((0, 0, 1, 2))),
            pinned=draw(st.sampled_from((False, False, True))),
        )
        for name in names
    )


BOUNDS = st.integers(0, 8)
INCOMING = st.integers(0, 2)


@given(residents(), BOUNDS, INCOMING)
def test_a_leased_or_pinned_model_never_leaves(
    cache: tuple[Resident, ...], models_max: int, incoming: int
) -> None:
    kept = {r.name for r in cache if r.leases or r.pinned}
    assert kept.isdisjoint(victims(cache, models_max=models_max, incoming=incoming))


@given(residents(), BOUNDS, INCOMING)
def test_afterwards_it_fits_or_all_that_is_left_is_kept(
    cache: tuple[Resident, ...], models_max: int, incoming: int
) -> None:
    leaving = victims(cache, models_max=models_max, incoming=incoming)
    left = [r for r in cache if r.name not in leaving]
    assert not models_max or len(left) + incoming <= models_max or all(r.leases or r.pinned for r in left)


@given(residents(), BOUNDS, INCOMING)
def test_no_more_leave_than_must(cache: tuple[Resident, ...], models_max: int, incoming: int) -> None:
    leaving = victims(cache, models_max=models_max, incoming=incoming)
    assert len(leaving) <= max(0, len(cache) + incoming - models_max)
    assert not leaving or models_max
    assert len(set(leaving)) == len(leaving)


@given(residents(), BOUNDS, INCOMING)
def test_whatever_leaves_was_used_no_later_than_what_could_have_left(
    cache: tuple[Resident, ...], models_max: int, incoming: int
) -> None:
    leaving = victims(cache, models_max=models_max, incoming=incoming)
    used = {r.name: r.used_at for r in cache}
    stayed = [r.used_at for r in cache if not (r.leases or r.pinned) and r.name not in leaving]
    assert all(used[name] <= at for name, at in itertools.product(leaving, stayed))
    assert [used[name] for name in leaving] == sorted(used[name] for name in leaving)


def test_of_two_used_at_the_same_instant_the_first_leaves() -> None:
    cache = [Resident("a", "ready", 1.0, leases=0), Resident("b", "ready", 1.0, leases=0)]
    assert victims(cache, models_max=2, incoming=1) == ("a",)


def test_without_a_bound_nothing_leaves() -> None:
    assert victims([Resident("a", "ready", 1.0, leases=0)], models_max=0, incoming=1) == ()
