"""Which cards each runner gets."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falctl.core.cards import Card, assign, share_out, visible
from falctl.errors import ConfigError


def card(index: int, *, uuid: str = "", instances: tuple[str, ...] = (), parent: str = "") -> Card:
    return Card(
        index, uuid or f"GPU-{index}aaa", f"Fake {index}", 80 << 30, instances, parent, bool(instances)
    )


FOUR = tuple(card(i) for i in range(4))


def uuids(groups: tuple[tuple[Card, ...], ...]) -> list[list[str]]:
    return [[c.uuid for c in group] for group in groups]


@pytest.mark.parametrize(
    ("value", "indices"),
    [
        (None, [0, 1, 2, 3]),
        ("0,2", [0, 2]),
        ("2,0", [2, 0]),
        (" 1 , 3 ", [1, 3]),
        ("GPU-3aaa,GPU-1", [3, 1]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1,9,2", [1]),
        ("1,1,2", [1]),
        ("GPU-", []),
    ],
)
def test_the_callers_cuda_visible_devices_cuts_as_cuda_does(value: str | None, indices: list[int]) -> None:
    assert [c.index for c in visible(FOUR, value)] == indices


def test_all_is_one_runner_per_visible_card() -> None:
    assert uuids(assign("all", FOUR[1:3], count=0)) == [["GPU-1aaa"], ["GPU-2aaa"]]


def test_none_and_a_machine_without_cards_give_no_groups() -> None:
    assert assign("none", FOUR, count=3) == ()
    assert assign("all", (), count=3) == ()


def test_a_card_may_be_named_twice_and_a_runner_may_take_several() -> None:
    assert uuids(assign([0, 0], FOUR, count=0)) == [["GPU-0aaa"], ["GPU-0aaa"]]
    assert uuids(assign([[0, 1], "GPU-2"], FOUR, count=0)) == [["GPU-0aaa", "GPU-1aaa"], ["GPU-2aaa"]]


def test_more_runners_than_entries_share_the_cards_in_turn_and_fewer_take_the_first() -> None:
    assert uuids(assign("all", FOUR[:2], count=3)) == [["GPU-0aaa"], ["GPU-1aaa"], ["GPU-0aaa"]]
    assert uuids(assign("all", FOUR, count=1)) == [["GPU-0aaa"]]


@pytest.mark.parametrize("choice", [[7], ["GPU-9"], ["nonsense"], [0, 4]])
def test_an_unknown_card_is_an_error_that_names_it_and_what_there_is(choice: list[int | str]) -> None:
    with pytest.raises(ConfigError, match=r"no GPU .* visible here: 0 \(GPU-0aaa\)"):
        assign(choice, FOUR, count=0)


def test_an_ambiguous_prefix_is_an_error() -> None:
    with pytest.raises(ConfigError, match="more than one GPU 'GPU-'"):
        assign(["GPU-"], FOUR, count=0)


def test_a_card_that_the_caller_hides_cannot_be_named() -> None:
    with pytest.raises(ConfigError, match="no GPU 0; visible here: 1"):
        assign([0], visible(FOUR, "1"), count=0)


@pytest.mark.parametrize("entry", [[0, 0], []])
def test_one_runner_needs_different_cards(entry: list[int]) -> None:
    with pytest.raises(ConfigError, match="different cards for one runner"):
        assign([entry], FOUR, count=0)


MIG = (
    card(0, instances=("MIG-a", "MIG-b")),
    card(0, uuid="MIG-a", parent="GPU-0aaa"),
    card(0, uuid="MIG-b", parent="GPU-0aaa"),
    card(1),
)


@pytest.mark.parametrize("choice", ["all", [0], ["GPU-0aaa"], [[1, 0]]])
def test_a_mig_parent_is_refused_with_its_instances_named(choice: list[int | str]) -> None:
    with pytest.raises(ConfigError, match=r"MIG mode .* --gpus MIG-a,MIG-b"):
        assign(choice, MIG, count=0)


def test_a_card_in_mig_mode_without_instances_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match="it has no instances: make some"):
        assign("all", [replace(card(0), mig_mode=True)], count=0)


def test_mig_instances_are_used_by_uuid() -> None:
    assert uuids(assign(["MIG-b", 1], MIG, count=0)) == [["MIG-b"], ["GPU-1aaa"]]


def test_all_takes_the_instances_that_the_caller_can_see_without_their_parent() -> None:
    assert uuids(assign("all", visible(MIG, "MIG-a,1"), count=0)) == [["MIG-a"], ["GPU-1aaa"]]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(0, 12))
def test_every_runner_gets_visible_cards_and_the_count_is_kept(choice: list[int], count: int) -> None:
    groups = assign(choice, FOUR, count=count)
    assert len(groups) == (count or len(choice))
    assert all(group and set(group) <= set(FOUR) for group in groups)
    assert [g[0].index for g in groups][: len(choice)] == choice[: len(groups)]


@given(st.integers(0, 12), st.integers(1, 5), st.sets(st.integers(0, 11)))
def test_what_is_shared_out_is_all_that_is_left_once_and_nearly_equal(
    n: int, shares: int, named: set[int]
) -> None:
    groups = [(card(i),) for i in range(n)]
    parts = share_out(groups, named=[card(i) for i in named], shares=shares)
    assert [group for part in parts for group in part] == [(card(i),) for i in range(n) if i not in named]
    sizes = [len(part) for part in parts]
    assert len(sizes) == shares
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1


def test_a_group_is_nobodys_part_if_one_of_its_cards_is_named() -> None:
    pairs = [(card(0), card(1)), (card(2), card(3))]
    assert share_out(pairs, named=[card(1)], shares=1) == [((card(2), card(3)),)]


def test_an_error_names_the_key_that_was_written() -> None:
    with pytest.raises(ConfigError, match=r"^apps\.x\.gpus: no GPU 9; "):
        assign([9], FOUR, count=0, key="apps.x.gpus")
    with pytest.raises(ConfigError, match=r'name its instances instead: gpus = \["MIG-a", "MIG-b"\]$'):
        assign([0], MIG, count=0, key="apps.x.gpus")
