"""Several apps in one configuration: what may stand there, and what a person is told when it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from falctl.config import AppConfig, Config
from falctl.config_diff import Change, diff_configs, take_live
from tests.configs import load, refusal

TWO = '[apps.draw]\napp = "draw:Draw"\ngpus = [0, 1]\n[apps.speak]\napp = "speak.py::Speak"\ncount = 2\ncpu_count = 3\n'


def test_apps_stand_in_the_order_of_the_file_with_the_words_of_runners(tmp_path: Path) -> None:
    config = load(TWO, folder=tmp_path)
    assert list(config.apps.items()) == [
        ("draw", AppConfig(app="draw:Draw", gpus=(0, 1))),
        ("speak", AppConfig(app="speak.py::Speak", count=2, cpu_count=3)),
    ]
    assert config.app_names == "draw, speak"
    assert Config.model_validate(config.model_dump(mode="json")) == config


def test_an_app_has_the_cache_of_all_but_for_what_its_table_says(tmp_path: Path) -> None:
    text = TWO.replace("count = 2", 'max_models = 2\nkeep_alive = 0\npreload = ["tiny"]')
    everyone = '[cache]\nmax_models = 5\nkeep_alive = "1h"\npreload = ["big@0"]\n'
    config = load(everyone + text, folder=tmp_path)
    assert config.cache_of("draw") == config.cache == config.cache_of("")
    speak = config.cache_of("speak")
    assert (speak.max_models, speak.keep_alive, speak.preload) == (2, 0.0, ("tiny",))
    assert Config.model_validate(config.model_dump(mode="json")) == config


def test_without_apps_the_one_of_runners_is_meant(tmp_path: Path) -> None:
    assert load('[runners]\napp = "a:B"\n[apps]', folder=tmp_path).app_names == "a:B"


def test_one_app_may_stand_there_twice_and_two_may_name_one_card(tmp_path: Path) -> None:
    text = "".join(f'[apps.{alias}]\napp = "a:B"\ngpus = [0]\n' for alias in ("one", "Two_2", '"v1.5-x"'))
    assert [app.gpus for app in load(text, folder=tmp_path).apps.values()] == [(0,)] * 3


@pytest.mark.parametrize("source", ["flag", "variable"])
def test_an_app_on_the_command_line_or_in_a_variable_is_the_only_one(source: str, tmp_path: Path) -> None:
    if source == "flag":
        config = load(TWO, folder=tmp_path, flags={"runners.app": "x:Y", "runners.count": 4})
        assert config.runners.count == 4
    else:
        config = load(TWO, folder=tmp_path, environ={"FALCTL_RUNNERS_APP": "x:Y"})
    assert (config.app_names, config.apps) == ("x:Y", {})


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("apps = 3", "apps = 3 in falctl.toml is not a section; write [apps.NAME] and its keys below it"),
        ("[apps]\ndraw = 1", "apps.draw = 1 in falctl.toml is not a section; write [apps.NAME] and its keys below it"),
        (
            "[[apps]]",
            "apps = [{}] in falctl.toml is not a section; write [apps.NAME] and its keys below it",
        ),
        (
            "[apps.draw]\ngpus = [0]",
            '[apps.draw] in falctl.toml names no app; write app = "module:Class" or "path.py::Class" below it',
        ),
        (
            '[apps."a/b"]\napp = "a:B"',
            '[apps."a/b"] in falctl.toml is no alias; write up to 64 letters and digits, with . _ - between them',
        ),
        (
            '[apps.""]\napp = "a:B"',
            '[apps.""] in falctl.toml is no alias; write up to 64 letters and digits, with . _ - between them',
        ),
        (
            '[apps.draw]\napp = "a:B"\ngpu = [0]',
            "unknown key 'gpu' in [apps.draw] of falctl.toml; did you mean 'gpus'?",
        ),
        (
            '[apps.draw]\napp = "a:B"\nport = 1',
            "unknown key 'port' in [apps.draw] of falctl.toml; it belongs in [server]",
        ),
        (
            '[apps.draw]\napp = "a:B"\nzzz = 1',
            "unknown key 'zzz' in [apps.draw] of falctl.toml; there are app, gpus, count, cpu_count, max_models, keep_alive, preload",
        ),
        (
            '[apps.v1.5]\napp = "a:B"',
            '[apps.v1.5] in falctl.toml: a name with a dot stands in quotes; write [apps."v1.5"]',
        ),
        (
            '[apps.draw]\napp = "a:B"\nkeep_alive = "1 hour"',
            'apps.draw.keep_alive = "1 hour" (falctl.toml): not a duration; '
            'write a number and one of ms, s, m, h, d: "10m"',
        ),
        (
            '[apps.draw]\napp = "a:B"\nmax_models = 257',
            "apps.draw.max_models = 257 (falctl.toml): out of bounds; write a whole number from 0 to 256",
        ),
        (
            '[apps.draw]\napp = "a:B"\npreload = [3]',
            "apps.draw.preload[0] = 3 (falctl.toml): write a text in quotes",
        ),
        ("[apps.draw]\napp = 7", "apps.draw.app = 7 (falctl.toml): write a text in quotes"),
        (
            '[apps.draw]\napp = "a:B"\ncount = 65',
            "apps.draw.count = 65 (falctl.toml): out of bounds; write a whole number from 0 to 64",
        ),
        (
            '[apps.draw]\napp = "a:B"\ngpus = [-1]',
            "apps.draw.gpus = [-1] (falctl.toml): a card is an index from 0 to 1023 or a UUID, "
            'as `nvidia-smi -L` prints them: [0, 2] or ["GPU-<uuid>"]',
        ),
        (
            TWO + '[runners]\napp = "x:Y"',
            'runners.app = "x:Y" in falctl.toml beside [apps.draw]: that is another app; write it below an [apps.NAME]',
        ),
        (
            TWO + "[runners]\ncount = 2",
            "runners.count = 2 in falctl.toml beside [apps.draw]: each app counts its own runners; "
            "write it below an [apps.NAME]",
        ),
        ("[app.draw]", "unknown section 'app' in falctl.toml; put this key below [runners]"),
        ("[appz.draw]", "unknown section 'appz' in falctl.toml; did you mean 'apps'?"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_its_fix(text: str, line: str, tmp_path: Path) -> None:
    assert refusal(text, folder=tmp_path) == line


def test_there_is_a_bound_on_apps(tmp_path: Path) -> None:
    text = "".join(f'[apps.a{n}]\napp = "a:B"\n' for n in range(65))
    assert refusal(text, folder=tmp_path) == (
        "65 apps in falctl.toml, and at most 64 can be served; remove some"
    )


def test_a_variable_cannot_name_an_app() -> None:
    assert refusal(environ={"FALCTL_APPS_DRAW_GPUS": "0"}) == (
        "environment variable FALCTL_APPS_DRAW_GPUS: apps are named in the file alone; write [apps.NAME] there"
    )


@pytest.mark.parametrize(
    ("environ", "flags", "origin"),
    [({}, {"runners.count": 2}, "command line"), ({"FALCTL_RUNNERS_COUNT": "2"}, {}, "FALCTL_RUNNERS_COUNT")],
)
def test_a_number_of_runners_from_elsewhere_is_of_no_app(
    environ: dict[str, str], flags: dict[str, object], origin: str, tmp_path: Path
) -> None:
    assert refusal(TWO, folder=tmp_path, environ=environ, flags=flags) == (
        f"runners.count = 2 ({origin}) counts the runners of one app, and there are several; "
        "write count below [apps.draw]"
    )


def test_a_reload_takes_up_nothing_of_an_app_and_says_so(tmp_path: Path) -> None:
    old = load(TWO, folder=tmp_path)
    new = load(
        '[apps.draw]\napp = "draw:Draw"\ngpus = [1]\n[apps.paint]\napp = "p:P"\n[queue]\nmax = 5',
        folder=tmp_path,
    )
    assert diff_configs(old, new) == (
        Change("queue.max", 1000, 5, live=True),
        Change("apps.draw.gpus", (0, 1), (1,), live=False),
        Change("apps.speak.app", "speak.py::Speak", None, live=False),
        Change("apps.speak.gpus", "all", None, live=False),
        Change("apps.speak.count", 2, None, live=False),
        Change("apps.speak.cpu_count", 3, None, live=False),
        Change("apps.paint.app", None, "p:P", live=False),
        Change("apps.paint.gpus", None, "all", live=False),
        Change("apps.paint.count", None, 0, live=False),
        Change("apps.paint.cpu_count", None, 0, live=False),
    )
    taken = take_live(old, new)
    assert (taken.apps, taken.queue.max) == (old.apps, 5)


def test_what_is_preloaded_changes_by_a_reload_also_of_an_app_that_stays(tmp_path: Path) -> None:
    old = load(TWO, folder=tmp_path)
    new = load(
        TWO.replace("count = 2", 'preload = ["tiny"]\nkeep_alive = 0') + '[cache]\npreload = ["big"]\n',
        folder=tmp_path,
    )
    live = {change.key for change in diff_configs(old, new) if change.live}
    assert live == {"cache.preload", "apps.speak.preload"}
    taken = take_live(old, new)
    assert (taken.cache_of("speak").preload, taken.cache_of("draw").preload) == (("tiny",), ("big",))
    assert (taken.apps["speak"].keep_alive, taken.apps["speak"].count) == (None, 2)
    gone = load(TWO[: TWO.index("[apps.speak]")], folder=tmp_path)
    assert take_live(old, gone) == old
