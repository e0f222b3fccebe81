"""What may stand in a key: durations, sizes, cards, and the way they are written back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from falctl.apikeys import hash_key
from falctl.config import Config, ModelsConfig, RunnersConfig, ServerConfig, is_loopback
from falctl.config_values import (
    check_key_hash,
    format_duration,
    format_keep_alive,
    format_size,
    parse_duration,
    parse_gpus,
    parse_keep_alive,
    parse_size,
    read_keep_alive,
)

CARDS = st.integers(0, 1023) | st.from_regex(r"(GPU|MIG)-[a-f0-9-]{1,36}", fullmatch=True)
GROUPS = st.lists(CARDS, min_size=1, max_size=4, unique=True).map(tuple)
CHOICES = st.just("all") | st.just("none") | st.lists(CARDS | GROUPS, min_size=1, max_size=8).map(tuple)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("10s", 10.0), ("10m", 600.0), ("1.5h", 5400.0), ("7d", 604800.0), (" 2 m ", 120.0)],
)
def test_a_duration_is_read_in_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0B", 0),
        ("1KiB", 1024),
        ("64 MiB", 64 << 20),
        ("8GiB", 8 << 30),
        ("1tib", 1 << 40),
        ("1.5GB", 1_500_000_000),
        ("9007199254740993B", 9007199254740993),
    ],
)
def test_a_size_is_read_in_bytes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "10", "m", "10 minutes", "1.2.3s", "1e3s", "-1s", "nan", "9" * 500 + "s"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r'not a duration; write .*"10m"'):
        parse_duration(text)


@pytest.mark.parametrize("text", ["", "8", "GiB", "8G", "8 gigs", "1.2.3GiB", "-1B", "8iB", "9" * 500 + "B"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r'not a size; write .*"8GiB"'):
        parse_size(text)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("10m", 600.0), ("0", 0.0), (0, 0), (1.5, 1.5), (-1, -1.0), ("-1", -1.0), ("-1m", -1.0), (-3.5, -1.0)],
)
def test_a_model_is_kept_for_seconds_or_for_ever(value: object, seconds: float) -> None:
    assert parse_keep_alive(value) == seconds


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("10m", 600.0),
        (" 0 ", 0.0),
        ("300 ", 300.0),
        ("1.5", 1.5),
        (90, 90.0),
        (-7, -1.0),
        ("soon", None),
        (True, None),
        ("366d", None),
        (1e9, None),
    ],
)
def test_what_a_request_says_of_that_is_read_or_is_nothing(said: str | float, seconds: float | None) -> None:
    assert read_keep_alive(said) == seconds


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 600.0])
def test_how_long_a_model_is_kept_is_read_back_as_it_is_written(seconds: float) -> None:
    assert parse_keep_alive(format_keep_alive(seconds)) == seconds


@pytest.mark.parametrize("value", [3, 2.5, None, True, ["10m"]])
def test_what_is_no_text_is_left_to_the_type_check(value: object) -> None:
    assert parse_duration(value) is value
    assert parse_size(value) is value


@given(st.floats(0, 1e12, allow_subnormal=False) | st.integers(0, 10**9).map(float))
def test_a_written_duration_is_read_back_exactly(seconds: float) -> None:
    text = format_duration(seconds)
    if len(text) > 20:  # more digits than a person writes; the parser has its limit
        return
    assert parse_duration(text) == seconds


@given(
    st.integers(0, 1 << 62) | st.builds(lambda n, unit: n << unit, st.integers(1, 5000), st.integers(0, 45))
)
def test_a_written_size_is_read_back_exactly(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (0.25, "250ms"),
        (75.0, "75s"),
        (600.0, "10m"),
        (3600.0, "1h"),
        (604800.0, "7d"),
        (1.5, "1500ms"),
    ],
)
def test_a_duration_is_written_with_the_largest_unit_that_divides_it(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.text() | st.lists(st.text() | st.integers() | st.lists(st.integers())))
def test_no_choice_of_cards_raises_anything_but_value_error(value: object) -> None:
    try:
        parsed = parse_gpus(value)
    except ValueError:
        return
    assert parse_gpus(parsed) == parsed


@pytest.mark.parametrize(
    ("written", "parsed"),
    [
        ("all", "all"),
        (" none ", "none"),
        ("0", (0,)),
        ("0,2", (0, 2)),
        ("0, GPU-5a", (0, "GPU-5a")),
        ("[[0, 1], 2]", ((0, 1), 2)),
        ("['MIG-1/2/3']", ("MIG-1/2/3",)),
        ([0, 0], (0, 0)),
        (["1", [2, "3"]], (1, (2, 3))),
    ],
)
def test_cards_are_named_in_a_list_or_in_text(written: object, parsed: object) -> None:
    assert RunnersConfig.model_validate({"gpus": written}).gpus == parsed


@pytest.mark.parametrize(
    "written",
    [
        *("", "ALL", "0,,2", "0;1", "[0", "[0]\nx = 1", "GPU 1", "99999", "[" * 5000),
        *(0, True, None, {}, [], [True], [-1], [1024], [1.0], ["all"], [[]], [[0, 0]], [[0, [1]]], [0] * 65),
    ],
)
def test_another_shape_of_cards_is_refused(written: object) -> None:
    with pytest.raises(ValidationError):
        RunnersConfig.model_validate({"gpus": written})


@given(
    gpus=CHOICES, keep=st.floats(0.001, 3600), keys=st.lists(st.text(min_size=1).map(hash_key), max_size=3)
)
def test_a_configuration_survives_the_journey_as_json(gpus: object, keep: float, keys: list[str]) -> None:
    config = Config.model_validate(
        {
            "runners": {"gpus": gpus},
            "files": {"keep": keep},
            "server": {"api_keys": keys, "hosts": ["box.local"]},
            "models": {"paths": ["/models", "/ü"]},
        }
    )
    arrived = Config.model_validate(json.loads(json.dumps(config.model_dump(mode="json"))))
    assert arrived == config
    assert arrived.runners.gpus == gpus
    assert type(arrived.runners.gpus) is type(gpus)


def test_a_folder_may_start_at_a_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    (path,) = ModelsConfig.model_validate({"paths": ["~/models"]}).paths
    assert str(path) == "/home/ada/models"


def test_a_plain_key_is_answered_with_its_hash_which_is_then_accepted() -> None:
    with pytest.raises(ValueError, match="a plain key") as refusal:
        check_key_hash("s3cret")
    pasted = str(refusal.value).split('"')[1]
    assert pasted == hash_key("s3cret")
    assert check_key_hash(pasted) == pasted
    assert check_key_hash("sha256:" + pasted.removeprefix("sha256:").upper()) == pasted


@pytest.mark.parametrize(
    "text", ["", "sha256:", "sha256:" + "a" * 63, "sha256:" + "g" * 64, "two words", "clé"]
)
def test_what_is_neither_key_nor_hash_is_refused_without_a_hash_to_paste(text: str) -> None:
    with pytest.raises(ValueError, match="not the hash of a key"):
        check_key_hash(text)


def test_the_hash_of_an_empty_key_is_refused() -> None:
    with pytest.raises(ValueError, match="empty key"):
        check_key_hash(hash_key(""))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    assert is_loopback(host)
    assert ServerConfig(host=host).host == host


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "::", "", "192.168.0.2", "box.local", "127.0.0.1.example.org", "localhost.example.org"],
)
def test_any_other_address_needs_a_key(host: str) -> None:
    with pytest.raises(ValidationError, match="open to the network without API keys"):
        ServerConfig(host=host)
    assert ServerConfig(host=host, api_keys=(hash_key("k"),)).host == host


@pytest.mark.parametrize("origin", ["*", "null", "http://localhost:3000", "https://example.org", "app://x"])
def test_an_origin_is_taken_as_a_browser_sends_it(origin: str) -> None:
    assert ServerConfig(allow_origins=(origin,)).allow_origins == (origin,)


@pytest.mark.parametrize(
    "origin", ["", "localhost:3000", "http://x/", "http://x/path", "http://a b", "http://u@x"]
)
def test_an_origin_that_no_browser_sends_is_refused(origin: str) -> None:
    with pytest.raises(ValidationError, match="not an origin"):
        ServerConfig(allow_origins=(origin,))


def test_a_configuration_that_arrives_with_an_unknown_key_is_refused() -> None:
    with pytest.raises(ValidationError, match="prot"):
        Config.model_validate({"server": {"prot": 1}})


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Config().server.port = 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10m", 600.0), (" 0 ", 0.0), ("-1", -1.0), ("-5m", -1.0), ("soon", None), ("400d", None), ("", None)],
)
def test_a_request_says_how_long_models_are_kept(text: str, seconds: float | None) -> None:
    assert read_keep_alive(text) == seconds
