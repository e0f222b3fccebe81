"""The configuration is put together from its four sources; whatever stands there, it loads or says one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from falctl.config import Config
from falctl.config_keys import KEYS, Key
from falctl.config_load import find_config, load_config
from falctl.errors import ConfigError
from tests.configs import load, refusal

ALL_KEYS = pytest.mark.parametrize("key", KEYS.values(), ids=lambda key: key.name)
ANY_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def test_without_any_source_every_key_has_its_default() -> None:
    assert load() == Config()


def test_a_flag_beats_a_variable_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    text = "[server]\nport = 1\n[queue]\nmax = 1\n[cache]\nmax_models = 1"
    environ = {"FALCTL_SERVER_PORT": "2", "FALCTL_QUEUE_MAX": "2"}
    config = load(text, folder=tmp_path, environ=environ, flags={"server.port": 3})
    assert (config.server.port, config.queue.max, config.cache.max_models) == (3, 2, 1)
    assert config.runners == Config().runners


def test_a_flag_that_was_not_given_overrides_nothing(tmp_path: Path) -> None:
    assert load("[server]\nport = 1", folder=tmp_path, flags={"server.port": None}).server.port == 1


def test_variables_outside_the_sections_are_not_ours() -> None:
    environ = {
        "FALCTL_HOME": "/x",
        "FALCTL_CONTROL_FD": "3",
        "FALCTL_SERVERS_X": "",
        "SERVER_PORT": "1",
        "FALCTL_LOG": "1",
    }
    assert load(environ=environ) == Config()


@ALL_KEYS
def test_every_key_can_be_set_by_its_variable(key: Key) -> None:
    text = key.default.strip('"').removeprefix("[").removesuffix("]")
    assert load(environ={key.env: text}) == Config()


@pytest.mark.parametrize(
    ("variable", "text", "read"),
    [
        ("FALCTL_SERVER_PORT", " 99 ", 99),
        ("FALCTL_FILES_KEEP", "10m", 600.0),
        ("FALCTL_FILES_KEEP", "0.5", 0.5),
        ("FALCTL_QUEUE_MAX_BYTES", "8GiB", 8 << 30),
        ("FALCTL_SERVER_HOSTS", "a, b,", ("a", "b")),
        ("FALCTL_SERVER_HOSTS", "[::1]", ("[::1]",)),
        ("FALCTL_SERVER_HOSTS", '["a,b", "c"]', ("a,b", "c")),
        ("FALCTL_SERVER_HOSTS", "[]", ()),
        ("FALCTL_SERVER_HOSTS", "", ()),
        ("FALCTL_ROUTING_HINT_FROM", "", ""),
        ("FALCTL_ROUTING_HINT_FROM", "12", "12"),
        ("FALCTL_CACHE_KEEP_ALIVE", "-1", -1.0),
        ("FALCTL_CACHE_KEEP_ALIVE", "-5m", -1.0),
        ("FALCTL_CACHE_KEEP_ALIVE", "0", 0.0),
        ("FALCTL_CACHE_KEEP_ALIVE", "10m", 600.0),
        ("FALCTL_CACHE_KEEP_ALIVE_BY", "a/b=10m, c = -1,", {"a/b": 600.0, "c": -1.0}),
        ("FALCTL_CACHE_KEEP_ALIVE_BY", '{"a,b" = "1h", "c=d" = 0}', {"a,b": 3600.0, "c=d": 0.0}),
        ("FALCTL_CACHE_KEEP_ALIVE_BY", "", {}),
        ("FALCTL_RUNNERS_GPUS", "0,2", (0, 2)),
        ("FALCTL_RUNNERS_GPUS", "[[0,1]]", ((0, 1),)),
        ("FALCTL_SIMULATED_LOAD_S", "2", 2.0),
    ],
)
def test_a_variable_is_read_as_its_key_needs_it(variable: str, text: str, read: object) -> None:
    section, _, key = variable.removeprefix("FALCTL_").lower().partition("_")
    config = load(environ={variable: text})
    assert getattr(getattr(config, section), key) == read
    assert load(flags={f"{section}.{key}": text}) == config


def test_a_relative_folder_starts_at_the_file_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    text = '[models]\npaths = ["mine", "/absolute", "~/theirs"]'
    paths = load(text, folder=tmp_path).models.paths
    assert paths == (tmp_path / "mine", Path("/absolute"), Path("/home/ada/theirs"))


@pytest.mark.parametrize("text", [b"\xef\xbb\xbf[server]\nport = 1", b"[server]\r\nport = 1\r\n"])
def test_a_file_from_a_windows_editor_is_read(text: bytes, tmp_path: Path) -> None:
    assert load(text, folder=tmp_path).server.port == 1


def test_the_file_of_the_folder_is_found_if_there_is_one(tmp_path: Path) -> None:
    assert find_config(tmp_path) is None
    assert find_config(tmp_path / "missing") is None
    (tmp_path / "falctl.toml").touch()
    assert find_config(tmp_path) == tmp_path / "falctl.toml"


def test_a_dangling_link_is_found_so_that_loading_can_say_so(tmp_path: Path) -> None:
    (tmp_path / "falctl.toml").symlink_to("nowhere")
    found = find_config(tmp_path)
    assert found is not None
    with pytest.raises(ConfigError, match="there is no configuration file"):
        load_config(found, environ={}, flags={})


def _loads_or_helps(path: Path | None, *, environ: Mapping[str, str], flags: Mapping[str, object]) -> None:
    try:
        load_config(path, environ=environ, flags=flags)
    except ConfigError as error:
        for line in str(error).split("\n"):
            assert line.isprintable(), line
            assert len(line) < 600


def test_every_wrong_value_is_told_each_in_a_line_with_its_fix(tmp_path: Path) -> None:
    text = '[server]\nport = -1\nmax_body = "x"\n[runners]\ngpus = [-1, {}]\n[apps.a]\napp = 3\ncount = -1\n'
    lines = refusal(text, folder=tmp_path, environ={"FALCTL_CACHE_KEEP_ALIVE": "soon"}).split("\n")
    keys = [
        "server.port = -1",
        "server.max_body = ",
        "runners.gpus",
        "cache.keep_alive = ",
        "apps.a.app = 3",
        "apps.a.count = -1",
    ]
    assert len(lines) == len(keys)
    for key in keys:
        [line] = [line for line in lines if line.startswith(key)]
        assert "(falctl.toml)" in line or "(FALCTL_CACHE_KEEP_ALIVE)" in line


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(content=st.binary() | st.text(alphabet='abc[]{}"=.,\n#01-\\').map(str.encode))
def test_no_file_content_raises_anything_but_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "falctl.toml"
    path.write_bytes(content)
    _loads_or_helps(path, environ={}, flags={})


@settings(deadline=None, max_examples=300)
@given(key=st.sampled_from(list(KEYS.values())), text=st.text(st.characters(exclude_categories=())))
def test_no_variable_raises_anything_but_one_line(key: Key, text: str) -> None:
    _loads_or_helps(None, environ={key.env: text}, flags={})


@settings(deadline=None, max_examples=300)
@given(
    name=st.sampled_from([key.name for key in KEYS.values()]) | st.text(st.characters(exclude_categories=())),
    value=ANY_VALUE,
)
def test_no_flag_raises_anything_but_one_line(name: str, value: object) -> None:
    _loads_or_helps(None, environ={}, flags={name: value})


@pytest.mark.process
def test_importing_the_configuration_brings_pydantic_and_nothing_heavy() -> None:
    program = "import sys, falctl.config; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True, timeout=300
    )
    loaded = set(done.stdout.split())
    assert "pydantic" in loaded
    heavy = {
        "torch",
        "starlette",
        "fastapi",
        "uvicorn",
        "aiohttp",
        "typer",
        "rich",
        "numpy",
        "asyncio",
        "tomllib",
    }
    assert not loaded & heavy
