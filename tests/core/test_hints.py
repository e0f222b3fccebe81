"""What an app's `provide_hints` returned is published unchanged, or not at all."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falctl.core.hints import HEADER_BYTES_MAX, HINT_BYTES_MAX, HINTS_MAX, Cleaned, clean
from falctl.core.types import Hint

ANYTHING = st.text(st.characters(max_codepoint=0x2FF), max_size=40)


def on_the_wire(hints: Iterable[str]) -> list[str]:
    """Return what a reader of the header gets: cut at commas, each part stripped, empty ones left out."""
    header = ",".join(hints).encode("latin-1")
    return [part for raw in header.split(b",") if (part := raw.strip(b" \t").decode("latin-1"))]


@given(st.lists(ANYTHING))
def test_what_is_kept_arrives_unchanged(hints: list[str]) -> None:
    kept = clean(hints).kept
    assert kept is not None
    assert on_the_wire(kept) == list(kept)


@given(st.lists(ANYTHING))
def test_each_hint_that_is_dropped_has_a_complaint_and_no_other_has(hints: list[str]) -> None:
    cleaned = clean(hints)
    assert cleaned.kept is not None
    assert len(cleaned.complaints) == len(set(hints)) - len(cleaned.kept)


@given(
    st.lists(
        st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters=","), min_size=1)
    )
)
def test_sound_hints_are_kept_in_order_without_repeats(hints: list[str]) -> None:
    assert clean(hints) == Cleaned(tuple(dict.fromkeys(map(Hint, hints))))


@pytest.mark.parametrize("given_as", [list, tuple, iter, dict.fromkeys, lambda hints: (h for h in hints)])
def test_any_iterable_of_strings_is_a_list(given_as: object) -> None:
    assert callable(given_as)
    assert clean(given_as(["a", "b"])).kept == ("a", "b")


def test_dict_keys_are_hints_as_in_fals_own_example() -> None:
    assert clean({"a": 1, "b": 2}.keys()).kept == ("a", "b")


def test_an_empty_list_is_known_and_empty() -> None:
    assert clean([]) == Cleaned(())


@pytest.mark.parametrize("unusable", ["abc", b"abc", None, 7, ["a", 7], ["a", None], [b"a"]])
def test_what_is_no_list_of_strings_leaves_the_hints_known_before(unusable: object) -> None:
    cleaned = clean(unusable)
    assert cleaned.kept is None
    assert len(cleaned.complaints) == 1
    assert "known before stay" in cleaned.complaints[0]


@pytest.mark.parametrize(
    ("hint", "why"),
    [
        ("", "empty"),
        ("a,b", "comma"),
        ("a\r\nSet-Cookie: x", "control"),
        ("a\0", "control"),
        ("a\tb", "control"),
        ("a\x7f", "control"),
        (" a", "blank"),
        ("a ", "blank"),
        ("m\u0151", "latin-1"),
        ("a" * (HINT_BYTES_MAX + 1), "longer"),
    ],
)
def test_a_hint_that_no_header_can_carry_is_dropped_and_the_others_are_kept(hint: str, why: str) -> None:
    cleaned = clean(["before", hint, "after"])
    assert cleaned.kept == ("before", "after")
    assert [why in complaint for complaint in cleaned.complaints] == [True]
    assert len(cleaned.complaints[0]) < 250
    assert cleaned.complaints[0].isascii()
    assert cleaned.complaints[0].isprintable()


@pytest.mark.parametrize("hint", ["caf\xe9", "\x85", "\xa0a", "a b", "a" * HINT_BYTES_MAX])
def test_a_hint_of_latin_1_bytes_is_kept(hint: str) -> None:
    assert clean([hint]) == Cleaned((Hint(hint),))


def test_hints_beyond_the_header_are_dropped_from_the_end_and_counted() -> None:
    hints = [f"{i:05}" + "x" * 995 for i in range(100)]
    cleaned = clean(hints)
    assert cleaned.kept == tuple(hints[:61])
    assert len(",".join(cleaned.kept)) <= HEADER_BYTES_MAX < len(",".join(hints[:62]))
    assert cleaned.overflow == 39
    assert len(cleaned.complaints) == 1


def test_the_header_is_filled_to_its_last_byte() -> None:
    hints = [f"{i:02}" + "x" * 1021 for i in range(60)]
    assert len(",".join(hints)) == HEADER_BYTES_MAX - 1
    assert clean(hints).overflow == 0
    longer = [*hints[:-1], hints[-1] + "x"]
    assert len(",".join(longer)) == HEADER_BYTES_MAX
    assert clean(longer).overflow == 0
    assert clean([*longer, "y"]).overflow == 1


def test_nothing_small_slips_in_behind_a_hint_that_did_not_fit() -> None:
    hints = [f"{i:02}" + "x" * 1021 for i in range(60)]
    hints[-1] = hints[-1][:-4]  # room for "s", not for "large"
    assert clean([*hints, "s"]).overflow == 0
    assert clean([*hints, "large", "s"]).overflow == 2


def test_an_endless_generator_ends() -> None:
    cleaned = clean(f"{i}" for i in itertools.count())
    assert cleaned.kept is not None
    assert len(cleaned.kept) < HINTS_MAX
    assert cleaned.overflow


def test_an_iterable_that_raises_lets_it_pass() -> None:
    def broken() -> Iterable[str]:
        yield "a"
        raise RuntimeError("dictionary changed size during iteration")

    with pytest.raises(RuntimeError, match="changed size"):
        clean(broken())
