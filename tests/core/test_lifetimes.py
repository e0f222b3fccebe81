"""How long a stored file is kept, where its request says it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falctl.core.lifetimes import SECONDS_MAX, Lifetime, ends_at, read_header

NOW = 1_764_000_000.5


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ('{"expiration_duration_seconds": 3600}', Lifetime(3600.0)),
        ('{"expiration_duration_seconds": 1.5, "initial_acl": {"default": "forbid"}}', Lifetime(1.5)),
        ('{"expiration_duration_seconds": null}', Lifetime(None)),
        ("{}", None),
        ('{"initial_acl": {}}', None),
    ],
)
def test_what_a_header_says_is_read(value: str, wanted: Lifetime | None) -> None:
    assert read_header(value) == wanted


@pytest.mark.parametrize("value", ["", "3600", "null", "[]", "no json", "[" * 100_000])
def test_what_is_no_object_is_refused_with_an_example(value: str) -> None:
    with pytest.raises(ValueError, match="write for example"):
        read_header(value)


@pytest.mark.parametrize("seconds", ["0", "-1", "true", '"60"', "1e12", "NaN", "Infinity", "[]", "0.5"])
def test_what_is_no_duration_is_refused(seconds: str) -> None:
    with pytest.raises(ValueError, match="a number of seconds from 1 to"):
        read_header('{"expiration_duration_seconds": ' + seconds + "}")


@given(st.floats(1.0, SECONDS_MAX), st.sampled_from([".png", ".bin", ".txt"]))
def test_a_name_says_when_its_file_ends_and_never_too_early(seconds: float, suffix: str) -> None:
    end = ends_at("random-part_0" + Lifetime(seconds).mark(NOW) + suffix, otherwise=1.0)
    assert NOW + seconds <= end < NOW + seconds + 1.001


def test_for_ever_is_for_ever_and_silence_leaves_it_to_others() -> None:
    assert ends_at("name" + Lifetime(None).mark(NOW) + ".png", otherwise=1.0) == math.inf
    for name in ("name.png", "name.x.png", "name.x12", "x12.png", "name.x1234567890123.png"):
        assert ends_at(name, otherwise=1.0) == 1.0
