"""The example file says what the code says, and a reload knows what it can change."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from falctl.config import Config
from falctl.config_diff import LIVE, Change, diff_configs
from falctl.config_keys import KEYS, Key
from falctl.config_load import load_config
from tests.configs import load
from tools.config_example import PATH, render


def test_the_example_is_what_the_code_says() -> None:
    assert PATH.read_text(encoding="utf-8") == render(), "run `python -m tools.config_example`"


def test_the_example_as_it_stands_changes_nothing() -> None:
    assert load_config(PATH, environ={}, flags={}) == Config()


def test_the_example_uncommented_says_every_key_and_gives_the_defaults(tmp_path: Path) -> None:
    lines = [line.removeprefix("#") for line in PATH.read_text(encoding="utf-8").splitlines()]
    assert load("\n".join(lines), folder=tmp_path) == Config()
    assert [line.partition(" = ")[0] for line in lines if re.match(r"\w+ = ", line)] == [
        key.key for key in KEYS.values()
    ]


@pytest.mark.parametrize("key", KEYS.values(), ids=lambda key: key.name)
def test_every_key_has_its_line_of_why(key: Key) -> None:
    assert key.field.description
    assert f"## {key.field.description}" in render()
    assert key.allowed() in render()


def test_equal_configurations_have_no_difference() -> None:
    assert diff_configs(Config(), load(flags={"server.port": 8808})) == ()


def test_each_change_tells_whether_it_needs_a_restart() -> None:
    new = load(flags={"server.port": 1, "queue.max": 7, "runners.gpus": "0,1"})
    assert diff_configs(Config(), new) == (
        Change("server.port", 8808, 1, live=False),
        Change("queue.max", 1000, 7, live=True),
        Change("runners.gpus", "all", (0, 1), live=False),
    )


def test_live_keys_exist() -> None:
    assert {key.name for key in KEYS.values()} >= LIVE


def test_whole_sections_are_live_to_their_last_key() -> None:
    assert {key.name for key in KEYS.values() if key.section in ("routing", "queue", "files", "log")} <= LIVE
    of_runners = {key.name for key in KEYS.values() if key.section in ("runners", "cache", "models")}
    assert of_runners & LIVE == {"cache.preload"}, (
        "the router looks after that one, the others are a runner's"
    )
