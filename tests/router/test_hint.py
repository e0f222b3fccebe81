"""The wanted hint, read from header and body."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from falctl.core.types import Hint, Wanted
from falctl.router.dispatch.hint import (
    HINT_CHARS_MAX,
    LORAS_MAX,
    MEMBERS_MAX,
    SEARCHED_BYTES_MAX,
    wanted_hint,
)

JSON = {b"content-type": b"application/json"}


def from_body(body: bytes, field: str = "model") -> str | None:
    wanted = wanted_hint(JSON, body, field=field)
    assert wanted is None or wanted.source == "body"
    return None if wanted is None else wanted.hint


def test_a_header_wins_over_the_body() -> None:
    head = {**JSON, b"x-fal-runner-hint": b"caf\xe9"}
    assert wanted_hint(head, b'{"model": "other"}', field="model") == Wanted(Hint("caf\xe9"), "header")


@pytest.mark.parametrize("value", [b"", b" ", b"\t "])
def test_an_empty_header_is_no_hint(value: bytes) -> None:
    assert wanted_hint({b"x-fal-runner-hint": value}, b"", field="model") is None


def test_a_longer_hint_than_a_runner_can_list_is_none_whatever_it_stands_in() -> None:
    longest = b"h" * HINT_CHARS_MAX
    assert wanted_hint({b"x-fal-runner-hint": longest}, b"", field="") == Wanted(Hint("h" * 1024), "header")
    assert (
        wanted_hint({**JSON, b"x-fal-runner-hint": longest + b"h"}, b'{"model": "m"}', field="model") is None
    )


def test_blanks_behind_a_header_s_value_are_no_part_of_it() -> None:
    assert wanted_hint({b"x-fal-runner-hint": b"a b \t"}, b"", field="model") == Wanted(Hint("a b"), "header")


@settings(max_examples=50)
@given(
    st.dictionaries(
        st.text(), st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(), st.lists)
    )
)
def test_a_field_is_found_wherever_it_stands_and_compared_exactly(members: dict[str, object]) -> None:
    members.pop("model", None)
    body = json.dumps({**members, "model": " sdxl "}, ensure_ascii=False).encode("utf-8", "surrogatepass")
    assert from_body(body) == " sdxl "
    members["model"] = "first"
    reordered = {"model": members.pop("model"), **members}
    assert from_body(json.dumps(reordered, indent=2).encode()) == "first"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'"model"',
        b"{}",
        b'{"model"',
        b'{"model": 3}',
        b'{"model": null}',
        b'{"model": ["a"]}',
        b'{"model": ""}',
        b'{"other": {"model": "nested"}}',
        b'{"other": "\\"model\\": \\"quoted\\""}',
        b'{"prompt": "x" "model": "no comma"}',
        b'{model: "bare"}',
        b"not json at all",
        b"\xff\xfe\x00",
        b'{"a":' + b"[" * 100_000,
        b'{"model": "' + b"x" * (HINT_CHARS_MAX + 1) + b'"}',
    ],
)
def test_what_is_not_a_top_level_text_is_no_hint(body: bytes) -> None:
    assert from_body(body) is None


def test_only_json_is_searched() -> None:
    body = b'{"model": "m"}'
    assert wanted_hint({}, body, field="model") is not None
    assert (
        wanted_hint({b"content-type": b"application/vnd.x+JSON; charset=utf-8"}, body, field="model")
        is not None
    )
    assert wanted_hint({b"content-type": b"text/plain"}, body, field="model") is None
    assert wanted_hint({**JSON, b"content-encoding": b"gzip"}, body, field="model") is None


def test_the_field_can_be_named_and_turned_off() -> None:
    assert from_body(b'{"model": "m", "ckpt": "c"}', "ckpt") == "c"
    assert from_body(b'{"model": "m", "": "c"}', "") is None


def test_a_field_in_front_of_a_huge_rest_is_found_and_one_behind_it_is_not_looked_for() -> None:
    rest = b'"image": "' + b"A" * SEARCHED_BYTES_MAX + b'"'
    assert from_body(b'{"model": "m", ' + rest + b"}") == "m"
    assert from_body(b"{" + rest + b', "model": "m"}') is None


def test_a_field_behind_too_many_members_is_not_looked_for() -> None:
    assert from_body(b"{" + b'"": 0, ' * (MEMBERS_MAX - 1) + b'"model": "m"}') == "m"
    assert from_body(b"{" + b'"": 0, ' * MEMBERS_MAX + b'"model": "m"}') is None


def test_a_cut_in_a_character_does_no_harm() -> None:
    assert from_body(b'{"model": "m", "t": "' + "é".encode() * SEARCHED_BYTES_MAX + b'"}') == "m"


def laid(body: object, joint: str | None = "+") -> Wanted | None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return wanted_hint(JSON, content, field="model", joint=joint)


def test_the_loras_of_a_body_are_part_of_its_hint_in_their_order_and_their_scales_are_not() -> None:
    loras = [{"path": "b.safetensors", "scale": 0.5}, {"scale": 2, "path": "a"}]
    for body in ({"model": "m", "loras": loras}, {"loras": loras, "prompt": "x", "model": "m"}):
        assert laid(body) == Wanted(Hint("m+b+a"), "body")
        assert laid(body, "::") == Wanted(Hint("m::b::a"), "body")
        assert laid(body, "") == Wanted(Hint("m"), "body")
        assert laid(body, None) == Wanted(Hint("m"), "body", ("b.safetensors", "a"))


def test_a_header_says_all_of_a_model_s_name_whatever_the_body_lays_upon_it() -> None:
    head = {**JSON, b"x-fal-runner-hint": b"m"}
    body = b'{"model": "other", "loras": [{"path": "a"}]}'
    assert wanted_hint(head, body, field="model", joint="+") == Wanted(Hint("m"), "header")


@pytest.mark.parametrize(
    "loras",
    [
        [],
        None,
        "a",
        {"path": "a"},
        ["a"],
        [{"path": "a"}, {}],
        [{"path": "a"}, None],
        [{"path": ["a"]}],
        [{"path": ""}],
        [{"path": "a" * (HINT_CHARS_MAX + 1)}],
        [{"path": "a" * (HINT_CHARS_MAX // 2)}] * 2,
        [{"path": "a"}] * (LORAS_MAX + 1),
        [[[[]]]],
    ],
)
def test_what_is_no_list_of_loras_leaves_the_base(loras: object) -> None:
    assert laid({"model": "m", "loras": loras}) == Wanted(Hint("m"), "body")


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "m", "loras": [{"path": "a"}',
        b'{"model": "m", "loras"',
        b'{"model": "m", "loras": ' + b"[" * 100_000,
        b'{"model": "m", "prompt": "\\"loras\\": [{\\"path\\": \\"a\\"}]"}',
        b'{"model": "m", "prompt": "' + b"x" * SEARCHED_BYTES_MAX + b'", "loras": [{"path": "a"}]}',
        b'{"model": "m", ' + b'"": 0, ' * MEMBERS_MAX + b'"loras": [{"path": "a"}]}',
    ],
)
def test_loras_that_cannot_be_read_leave_the_base(body: bytes) -> None:
    assert laid(body) == Wanted(Hint("m"), "body")


def test_loras_without_a_model_are_no_hint() -> None:
    assert laid({"loras": [{"path": "a"}]}) is None
    assert laid({"loras": [{"path": "a"}], "model": 3}) is None
