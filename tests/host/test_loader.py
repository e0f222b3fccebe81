"""APP is found, or one line says why not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from falctl.errors import ConfigError
from falctl.host.loader import load_app

GOOD = """
from falctl import App, endpoint
class Mine(App):
    @endpoint("/")
    def go(self) -> str:
        return "gone"
NotAnApp = 7
"""


@pytest.fixture(autouse=True)
def restored_modules() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def refusal(name: str, cwd: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_app(name, cwd=cwd)
    message = str(caught.value)
    assert "\n" not in message
    return message


def app_with(folder: Path, body: str) -> str:
    (folder / "app.py").write_text("from falctl import App, endpoint\nclass Mine(App):\n" + body)
    return "app.py::Mine"


ENDPOINT = "    @endpoint({!r})\n    def {}(self) -> str:\n        return ''\n"


def test_a_file_is_found_relative_to_the_callers_folder(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "app.py").write_text(GOOD)
    assert load_app("sub/app.py::Mine", cwd=tmp_path).__name__ == "Mine"
    assert load_app(f"{tmp_path}/sub/app.py::Mine", cwd=Path("/")).__name__ == "Mine"


def test_a_module_is_found_in_the_callers_folder(tmp_path: Path) -> None:
    (tmp_path / "some_app.py").write_text(GOOD)
    assert load_app("some_app:Mine", cwd=tmp_path).__module__ == "some_app"


def test_an_app_may_import_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "beside_it.py").write_text("NAME = 'n'")
    (tmp_path / "sub" / "app.py").write_text("import beside_it\n" + GOOD)
    assert load_app("sub/app.py::Mine", cwd=tmp_path)


def test_a_file_beside_the_app_shadows_nothing(tmp_path: Path) -> None:
    (tmp_path / "colorsys.py").write_text("raise RuntimeError('shadowed')")
    (tmp_path / "json.py").write_text(GOOD)
    (tmp_path / "app.py").write_text("import colorsys\n" + GOOD)
    assert load_app("app.py::Mine", cwd=tmp_path)
    assert load_app("json.py::Mine", cwd=tmp_path)
    assert Path(sys.modules["json"].__file__ or "").parent != tmp_path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Mine", "names no class; write APP as module:Class or path.py::Class"),
        (":Mine", "names no class"),
        ("app:", "names no class"),
        ("nowhere.py::Mine", "there is no file"),
        ("no_such_module:Mine", "there is no module 'no_such_module'"),
        ("no_such.module:Mine", "there is no module 'no_such'"),
        ("app.py::Yours", "has no class 'Yours'; it has Mine"),
        ("app.py::", "has no class ''"),
        ("app.py::NotAnApp", "NotAnApp is not a subclass of falctl.App"),
        ("app.py::App", "App is not a subclass of falctl.App"),
        ("notes.txt::Mine", "is no Python file"),
    ],
)
def test_what_cannot_be_found_is_named(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "app.py").write_text(GOOD)
    (tmp_path / "notes.txt").write_text("")
    message = refusal(name, tmp_path)
    assert said in message
    assert message.startswith(f"APP {name!r}")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import json\njson.loads('{')", "JSONDecodeError: Expecting property name"),
        ("x = 1\nimport no_such_thing", "ModuleNotFoundError: No module named 'no_such_thing'"),
        ("x = 1\n1/0", "ZeroDivisionError: division by zero"),
        ("x = 1\nraise SystemExit(3)", "SystemExit: 3"),
        ("x = 1\ndef f(:\n", "SyntaxError"),
    ],
)
def test_an_import_that_fails_tells_its_last_line_and_where(tmp_path: Path, source: str, said: str) -> None:
    (tmp_path / "app.py").write_text(source)
    for name in ("app.py::Mine", "app:Mine"):
        message = refusal(name, tmp_path)
        assert said in message
        assert f"({tmp_path}/app.py:2)" in message


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("    pass\n", "has no endpoint; mark a method"),
        (ENDPOINT.format("/a", "one") + ENDPOINT.format("/a", "two"), "one and two have one path, '/a'"),
        (ENDPOINT.format("/falctl/x", "one"), "endpoint one has the path '/falctl/x', which falctl keeps"),
        (ENDPOINT.format("/health", "one"), "which falctl keeps"),
        (ENDPOINT.format("/queue", "one"), "which falctl keeps"),
        (ENDPOINT.format("/v1/images", "one"), "which falctl keeps"),
        (ENDPOINT.format("/docs", "one"), "which falctl keeps"),
        (ENDPOINT.format("/openapi.json", "one"), "which falctl keeps"),
        ("    max_multiplexing = 0\n" + ENDPOINT.format("/", "one"), "max_multiplexing is 0"),
        ("    max_multiplexing = True\n" + ENDPOINT.format("/", "one"), "max_multiplexing is True"),
        ("    max_multiplexing = '2'\n" + ENDPOINT.format("/", "one"), "max_multiplexing is '2'"),
    ],
)
def test_a_class_that_cannot_be_served_is_refused(tmp_path: Path, body: str, said: str) -> None:
    assert said in refusal(app_with(tmp_path, body), tmp_path)


@pytest.mark.parametrize("path", ["/", "/runway", "/healthy", "/docs2", "/falctl2", "/run-it"])
def test_a_path_that_only_looks_like_one_of_ours_is_free(tmp_path: Path, path: str) -> None:
    assert load_app(app_with(tmp_path, ENDPOINT.format(path, "one")), cwd=tmp_path)
