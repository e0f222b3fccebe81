"""Whoever wants to draw begins, waits or is told; nobody waits in vain, and nobody draws into another's room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from falctl.core.residency import Held, Part, Tier
from falctl.core.turns import Supply, Use, room_alone, room_at_last, room_beside, verdict

SIZES = {"a": 40, "b": 30, "shared": 10}


def part(key: str, tier: Tier = "vram", size: int | None = None) -> Part:
    return Part(key, SIZES[key] if size is None else size, tier)


def use(name: str, holder: str, drawing: int = 10, **facts: object) -> Use:
    """One of a model that has the part of its name, and draws *drawing* beside it."""
    parts = (part(name, "disk"),)
    return replace(Use(name, holder, SIZES[name] + drawing, parts, "whole"), **facts)  # type: ignore[arg-type]


def device(*there: str, total: int = 100, drawn: int = 0, reserve: int = 0, pinned: str = "") -> Supply:
    parts = {key: part(key) for key in there}
    held = tuple(
        Held(name, (parts.get(name) or part(name, "ram"),), 0.0, pinned=name == pinned) for name in SIZES
    )
    free = total - drawn - sum(p.nbytes for p in parts.values())
    return Supply(held, parts, free, total, reserve, drawn)


def judged(ask: Use, uses: Sequence[Use], supply: Supply, *line: Use) -> str:
    return verdict(ask, line, uses, supply)


# Room


def test_what_others_draw_is_kept_free_for_them_and_what_they_have_of_it_counts_once() -> None:
    """Of 100 bytes A has 40 and draws 25: B's 30 and its drawing of 5 fit beside that, and not one of 6."""
    running = [use("a", "other", 25)]
    for drawn in (0, 10, 25):
        supply = device("a", drawn=drawn)
        assert judged(use("b", "me", 5), running, supply) == "now"
        assert judged(use("b", "me", 6), running, supply) == "wait"
        assert room_beside(use("b", "me"), running, supply).expected_bytes == 25 - drawn
    told = room_beside(use("b", "me"), running, device("a")).told(90)
    assert told.endswith("in use: a (40 bytes); to be taken by what is drawn now: 25 bytes")
    assert room_beside(use("b", "me"), running, device("a", drawn=30)).expected_bytes == 0


def test_what_is_granted_and_not_there_yet_is_expected_with_its_weights() -> None:
    assert room_beside(use("b", "me"), [use("a", "other")], device()).expected_bytes == 50
    assert judged(use("b", "me", 20), [use("a", "other")], device()) == "now"
    assert judged(use("b", "me", 21), [use("a", "other")], device()) == "wait"


def test_a_request_draws_one_thing_at_a_time() -> None:
    running = [use("a", "other", 25), use("b", "other", 15)]
    assert room_beside(use("shared", "me"), running, device("a", "b")).expected_bytes == 25
    both = [use("a", "one", 12), use("b", "two", 8)]
    assert room_beside(use("shared", "me"), both, device("a", "b")).expected_bytes == 20


def test_who_is_alone_has_all_that_there_is() -> None:
    ask = use("b", "me", 20)
    for own in ([], [use("a", "me", 60)], [use("a", "app", 60, lasting=True)]):
        assert room_beside(ask, own, device("a")).expected_bytes == 0
        assert judged(replace(ask, need_bytes=60), own, device("a")) == "now"
        assert judged(replace(ask, need_bytes=61), own, device("a")) == ("never" if own else "now")
    assert judged(replace(ask, need_bytes=101), [], device("a")) == "never"


def test_two_who_draw_with_one_model_have_its_weights_once() -> None:
    running = [use("a", "other", 30)]
    for there in ((), ("a",)):
        assert judged(use("a", "me", 30), running, device(*there)) == "now"
        assert judged(use("a", "me", 31), running, device(*there)) == "wait"


def test_of_a_model_that_comes_and_goes_all_is_expected_that_is_not_there() -> None:
    staged = use("a", "other", 30, moves=True)
    assert room_beside(use("b", "me"), [staged], device()).expected_bytes == 70
    assert room_beside(use("b", "me"), [staged], device("a")).expected_bytes == 30
    assert room_beside(use("a", "me"), [staged], device("a")).expected_bytes == 30
    assert room_beside(use("a", "me"), [staged], device()).expected_bytes == 70


def test_a_reserve_and_pins_stay_and_nobody_waits_for_them() -> None:
    assert judged(use("b", "me", 41), [], device("a", reserve=30)) == "never"
    assert judged(use("b", "me", 30), [], device("a", pinned="a")) == "now"
    assert judged(use("b", "me", 31), [], device("a", pinned="a")) == "never"
    assert judged(use("b", "me", 30), [], device("a", pinned="a", reserve=10)) == "never"


def test_how_a_model_runs_does_not_depend_on_who_draws_beside_it() -> None:
    running = [use("a", "other", 25)]
    assert room_at_last(use("b", "me"), (), running, device("a", drawn=20)).most_bytes == 100
    assert room_at_last(use("b", "me"), (), [use("a", "me", 25)], device("a", drawn=20)).most_bytes == 40
    kept = [use("a", "app", 25, lasting=True)]
    assert room_at_last(use("b", "me"), (), kept, device("a")).most_bytes == 60


def test_what_somebody_who_has_ended_left_behind_is_not_waited_for() -> None:
    assert judged(use("b", "me", 20), [], device(drawn=51)) == "never"
    assert judged(use("b", "me", 20), [], device(drawn=50)) == "now"


# Apart


def test_two_ways_of_one_model_are_not_on_the_device_together() -> None:
    running = [use("a", "other")]
    assert judged(use("a", "me"), running, device("a")) == "now"
    assert judged(use("a", "me", way="in tiles"), running, device("a")) == "wait"
    assert judged(use("a", "other", way="in tiles"), running, device("a")) == "now"
    assert judged(use("a", "me", way="in tiles"), [Use("a", "loads")], device("a")) == "now"


def test_parts_that_come_and_go_are_drawn_with_by_one_at_a_time() -> None:
    shared = (part("shared"),)
    whole = use("a", "one", 0, parts=(part("a"), *shared))
    staged = use("b", "two", 0, parts=(part("b"), *shared), moves=True)
    there = device("a", "b", "shared")
    assert judged(staged, [whole], there) == judged(whole, [staged], there) == "wait"
    assert judged(replace(staged, holder="one"), [whole], there) == "now", "it draws one thing at a time"
    assert judged(replace(staged, moves=False), [whole], there) == "now"
    assert judged(replace(staged, parts=(part("b"),)), [whole], there) == "now"
    assert judged(replace(staged, lasting=True), [whole], there) == "now"
    assert judged(staged, [replace(whole, lasting=True)], there) == "now"


def test_after_memory_ran_out_nobody_draws_beside_it() -> None:
    running = [use("a", "other", 0)]
    ask = use("b", "me", 0, alone=True)
    assert judged(ask, running, device("a")) == "wait"
    assert judged(running[0], [ask], device("b")) == "wait"
    assert judged(ask, [use("a", "app", 0, lasting=True)], device("a")) == "now"


# Turns


def test_who_asked_first_goes_first_but_for_those_who_hold_something() -> None:
    running, first = [use("a", "other", 25)], use("b", "first", 30)
    small = use("shared", "me", 0)
    assert judged(first, running, device("a")) == "wait"
    assert judged(small, running, device("a")) == "now"
    assert judged(small, running, device("a"), first) == "wait"
    assert judged(replace(small, holder="other"), running, device("a"), first) == "now"
    assert judged(small, [], device(), first) == "wait", "the first has its turn before"
    assert judged(replace(small, need_bytes=101), [], device(), first) == "never"


def test_two_who_wait_for_each_other_do_not_and_it_is_the_later_one_who_is_told() -> None:
    holding = [use("a", "one", 10), use("b", "two", 10)]
    first = replace(use("shared", "one"), need_bytes=60)
    second = replace(use("shared", "two"), need_bytes=65)
    there = device("a", "b")
    assert judged(first, holding, there) == "wait", "two may end"
    assert judged(second, holding, there, first) == "never", "one cannot, before two does"
    assert judged(first, holding, there) == "wait"
    assert judged(first, [use("a", "one", 10)], device("a")) == "now", "once two has been told"
    assert room_at_last(second, (first,), holding, there).most_bytes == 20
    assert room_alone(second, holding, there).most_bytes == 70
    assert room_alone(second, holding[1:], device("b", drawn=20)).most_bytes == 50


def test_who_holds_something_may_wait_for_one_who_waits_for_a_third() -> None:
    holding = [use("a", "one", 0), use("b", "two", 0), use("shared", "three", 0)]
    there = device("a", "b", "shared")
    first = Use("c", "one", 25, way="whole")  # 20 are free, 30 once three has ended
    second = Use("d", "two", 55, way="whole")  # 30 then, 70 once one has ended, too
    assert judged(first, holding, there) == "wait"
    assert judged(second, holding, there, first) == "wait"
    stuck = replace(first, need_bytes=35)
    assert judged(second, holding, there, stuck) == "never"


NAMES, HOLDERS = st.sampled_from(tuple(SIZES)), st.sampled_from(("one", "two", "three", "four"))
USES = st.builds(
    use,
    NAMES,
    HOLDERS,
    st.integers(0, 60),
    moves=st.booleans(),
    alone=st.booleans(),
    way=st.sampled_from(("whole", "staged")),
)


@given(st.lists(USES, max_size=4), st.lists(USES, max_size=4), st.sets(NAMES), st.integers(0, 30))
def test_of_those_who_wait_one_goes_or_is_told_once_nobody_else_draws(
    running: list[Use], asking: list[Use], there: set[str], drawn: int
) -> None:
    """Whatever asks whenever: as long as somebody waits and no other draws, somebody's waiting ends."""
    uses: list[Use] = []
    for one in running:
        if verdict(one, (), uses, device(*there)) == "now":
            uses.append(one)
    line: list[Use] = []
    for ask in asking:
        if verdict(ask, line, uses, device(*there, drawn=drawn)) == "wait":
            line.append(ask)
    waiting = {ask.holder for ask in line}
    uses = [one for one in uses if one.holder in waiting]  # the others have ended
    while line:
        found = [verdict(ask, line[:i], uses, device(*there)) for i, ask in enumerate(line)]
        assert set(found) != {"wait"}
        over = {ask.holder for ask, what in zip(line, found, strict=True) if what != "wait"}
        line = [ask for ask in line if ask.holder not in over]
        uses = [one for one in uses if one.holder not in over]
