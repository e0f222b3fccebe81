"""Every mistake in the configuration is one line: the key, the value, where it stands, and the fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from falctl.apikeys import hash_key
from falctl.config import Config
from falctl.config_keys import KEYS, Key
from falctl.config_load import load_config
from falctl.config_sources import FILE_BYTES_MAX
from falctl.config_values import Kind
from falctl.errors import ConfigError
from tests.configs import load, refusal


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[server]\nprot = 1", "unknown key 'prot' in [server] of falctl.toml; did you mean 'port'?"),
        ("[server]\ngpus = 1", "unknown key 'gpus' in [server] of falctl.toml; it belongs in [runners]"),
        ("[log]\nzzz = 1", "unknown key 'zzz' in [log] of falctl.toml; there are level"),
        ("[srver]", "unknown section 'srver' in falctl.toml; did you mean 'server'?"),
        ("port = 1", "unknown section 'port' in falctl.toml; put this key below [server]"),
        ("log = 1", "log = 1 in falctl.toml is not a section; write [log] and its keys below it"),
        ("[[log]]", "log = [{}] in falctl.toml is not a section; write [log] and its keys below it"),
        (
            "[server]\nport = 70000",
            "server.port = 70000 (falctl.toml): out of bounds; write a whole number from 0 to 65535",
        ),
        ("[server]\nport = true", "server.port = true (falctl.toml): write a whole number from 0 to 65535"),
        ("[server]\nport = 80.0", "server.port = 80.0 (falctl.toml): write a whole number from 0 to 65535"),
        ('[server]\nport = "80"', 'server.port = "80" (falctl.toml): write a whole number from 0 to 65535'),
        ("[server]\nhost = 1", "server.host = 1 (falctl.toml): write a text in quotes"),
        (
            '[server]\nhosts = "a"',
            'server.hosts = "a" (falctl.toml): write a list of texts such as ["a", "b"]',
        ),
        ('[server]\nhosts = ["a", 3]', "server.hosts[1] = 3 (falctl.toml): write a text in quotes"),
        (
            '[cache]\nkeep_alive = "for ever"',
            'cache.keep_alive = "for ever" (falctl.toml): not a duration; '
            'write a number and one of ms, s, m, h, d: "10m"',
        ),
        (
            '[cache]\nkeep_alive = "366d"',
            'cache.keep_alive = "366d" (falctl.toml): out of bounds; write seconds, or a duration such as "10m": '
            "0, up to 365d, or -1, for ever",
        ),
        (
            "[cache]\nkeep_alive_by = 3",
            'cache.keep_alive_by = 3 (falctl.toml): write a table such as { "a" = "10m", "b" = -1 }',
        ),
        (
            '[cache.keep_alive_by]\n"flux.1" = true',
            'cache.keep_alive_by["flux.1"] = true (falctl.toml): write a duration such as "10m": '
            "0, up to 365d, or -1, for ever",
        ),
        (
            '[cache.keep_alive_by]\nflux.1 = "1h"',
            'cache.keep_alive_by["flux"] = {"1" = "1h"} (falctl.toml): write a duration such as "10m": '
            "0, up to 365d, or -1, for ever",
        ),
        (
            '[cache]\npreload = "a"',
            'cache.preload = "a" (falctl.toml): write a list of texts such as ["a", "b"]',
        ),
        (
            '[files]\nkeep = "10 minutes"',
            'files.keep = "10 minutes" (falctl.toml): not a duration; '
            'write a number and one of ms, s, m, h, d: "10m"',
        ),
        (
            "[files]\nkeep = 0",
            'files.keep = 0 (falctl.toml): out of bounds; write seconds, or a duration such as "10m", '
            "above 0s, up to 365d",
        ),
        (
            '[server]\nmax_body = "5GiB"',
            'server.max_body = "5GiB" (falctl.toml): out of bounds; write bytes, or a size such as "8GiB", '
            "from 1KiB to 4GiB",
        ),
        (
            '[log]\nlevel = "INFO"',
            'log.level = "INFO" (falctl.toml): write "debug", "info", "warning" or "error"',
        ),
        (
            "[runners]\ngpus = 0",
            'runners.gpus = 0 (falctl.toml): write "all", "none", or a list of cards such as [0, 2]',
        ),
        (
            '[runners]\nbackoff_min = "2m"',
            'runners.backoff_min = "2m" (falctl.toml) is longer than runners.backoff_max, which is 1m; '
            "raise that or lower this",
        ),
        (
            "[runners]\nbackoff_max = 0.5",
            "runners.backoff_min = 1.0 (default) is longer than runners.backoff_max, which is 500ms; "
            "raise that or lower this",
        ),
        (
            '[server]\nhost = "0.0.0.0"',
            'server.host = "0.0.0.0" (falctl.toml) is open to the network without API keys; '
            'put what `falctl key` prints into server.api_keys, or write "127.0.0.1"',
        ),
        (
            '[server]\nhost = "a\\nb"',
            'server.host = "a\\nb" (falctl.toml): it holds a control character or is not UTF-8; write plain text',
        ),
        ("[models]\npaths = 3", 'models.paths = 3 (falctl.toml): write a list of texts such as ["a", "b"]'),
        ("[models]\npaths = [3]", "models.paths[0] = 3 (falctl.toml): write a text in quotes"),
        (
            '[models]\npaths = [""]',
            'models.paths[0] = "" (falctl.toml): not a folder; write a path such as "~/models"',
        ),
        (
            '[models]\npaths = ["~nobody-of-that-name/x"]',
            'models.paths[0] = "~nobody-of-that-name/x" (falctl.toml): '
            "there is no such home directory; write the whole path",
        ),
        (
            "[server]\nhost = localhost",
            "falctl.toml is not valid TOML: Invalid value (at line 2, column 8); "
            "texts stand in quotes, lists in brackets",
        ),
        (
            "[server]\nport = [\n",
            "falctl.toml is not valid TOML: Invalid value (at the end, line 3); "
            "texts stand in quotes, lists in brackets",
        ),
        (
            "a = " + "[" * 5000,
            "falctl.toml is not valid TOML: lists or tables are nested too deeply; "
            "texts stand in quotes, lists in brackets",
        ),
        (
            "a = " + "9" * 5000,
            "falctl.toml is not valid TOML: a number has too many digits; texts stand in quotes, lists in brackets",
        ),
    ],
)
def test_a_mistake_in_the_file_is_one_line_with_its_fix(text: str, line: str, tmp_path: Path) -> None:
    assert refusal(text, folder=tmp_path) == line


@pytest.mark.parametrize(
    "value", ["0x" + "f" * 5000, "{" + ".".join("a" * 9000) + " = 1}", '"' + "x" * 9000 + '"', "1979-05-27"]
)
def test_a_monstrous_value_is_cut_to_a_line(value: str, tmp_path: Path) -> None:
    line = refusal(f"[server]\nport = {value}", folder=tmp_path)
    assert line.startswith("server.port = ")
    assert line.endswith("write a whole number from 0 to 65535")
    assert len(line) < 250


@pytest.mark.parametrize(
    ("variable", "text", "line"),
    [
        (
            "FALCTL_SERVER_PROT",
            "1",
            "unknown environment variable FALCTL_SERVER_PROT; did you mean FALCTL_SERVER_PORT?",
        ),
        (
            "FALCTL_SERVER_port",
            "1",
            "unknown environment variable FALCTL_SERVER_port; did you mean FALCTL_SERVER_PORT?",
        ),
        ("FALCTL_LOG_ZZZ", "1", "unknown environment variable FALCTL_LOG_ZZZ; unset it"),
        (
            "FALCTL_QUEUE_MAX",
            "0",
            "queue.max = 0 (FALCTL_QUEUE_MAX): out of bounds; write a whole number from 1 to 1000000",
        ),
        ("FALCTL_QUEUE_MAX", "", 'queue.max = "" (FALCTL_QUEUE_MAX): write a whole number from 1 to 1000000'),
        (
            "FALCTL_QUEUE_MAX",
            "nan",
            'queue.max = "nan" (FALCTL_QUEUE_MAX): write a whole number from 1 to 1000000',
        ),
        (
            "FALCTL_MODELS_ALLOW",
            '["a", b]',
            'models.allow = "[\\"a\\", b]" (FALCTL_MODELS_ALLOW): write a list of texts such as ["a", "b"]',
        ),
        (
            "FALCTL_MODELS_PATHS",
            "\udcff",
            'models.paths[0] = "\\udcff" (FALCTL_MODELS_PATHS): it holds a control character or is not UTF-8; '
            "write plain text",
        ),
    ],
)
def test_a_mistake_in_a_variable_names_the_variable(variable: str, text: str, line: str) -> None:
    assert refusal(environ={variable: text}) == line


def test_a_list_that_is_nested_without_end_is_refused_like_any_other() -> None:
    line = refusal(environ={"FALCTL_MODELS_ALLOW": '["a", ' + "[" * 5000})
    assert line.endswith('… (FALCTL_MODELS_ALLOW): write a list of texts such as ["a", "b"]')


@pytest.mark.parametrize(
    ("flag", "value", "line"),
    [
        (
            "server.port",
            70000,
            "server.port = 70000 (command line): out of bounds; write a whole number from 0 to 65535",
        ),
        ("server.prot", 1, "unknown key 'prot' in [server] of the command line; did you mean 'port'?"),
        ("srver.port", 1, "unknown section 'srver' in the command line; did you mean 'server'?"),
        (
            "runners.gpus",
            "0,x",
            'runners.gpus = "0,x" (command line): a card is an index from 0 to 1023 or a UUID, '
            'as `nvidia-smi -L` prints them: [0, 2] or ["GPU-<uuid>"]',
        ),
    ],
)
def test_a_mistake_in_a_flag_names_the_command_line(flag: str, value: object, line: str) -> None:
    assert refusal(flags={flag: value}) == line


@pytest.mark.parametrize("key", [key for key in KEYS.values() if key.allowed()], ids=lambda key: key.name)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, 1 << 60, "?", True, [None]], ids=repr)
def test_every_bounded_key_refuses_what_lies_outside(key: Key, value: object) -> None:
    if key.kind is Kind.KEEP and value == -1:
        return  # there it is a word for "for ever"
    assert refusal(flags={key.name: value}).startswith(f"{key.name} = ")


def test_a_plain_key_is_refused_with_its_hash_and_is_not_repeated(tmp_path: Path) -> None:
    lines = {
        "falctl.toml": refusal('[server]\napi_keys = ["s3cret"]', folder=tmp_path),
        "FALCTL_SERVER_API_KEYS": refusal(environ={"FALCTL_SERVER_API_KEYS": "s3cret"}),
        "command line": refusal(flags={"server.api_keys": ["s3cret"]}),
    }
    for origin, line in lines.items():
        hint = f'a plain key; store its hash instead: "{hash_key("s3cret")}"'
        assert line == f"server.api_keys[0] ({origin}): {hint}"
    assert "s3cret" not in refusal('[server]\napi_keys = "s3cret"', folder=tmp_path)


def test_a_refusal_does_not_drag_pydantic_along() -> None:
    with pytest.raises(ConfigError) as caught:
        load(flags={"server.api_keys": ["s3cret"]})
    assert caught.value.__suppress_context__


def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    loop = tmp_path / "loop.toml"
    loop.symlink_to(loop)
    for path, why in {
        tmp_path / "none.toml": "there is no configuration file",
        tmp_path: "Is a directory",
        loop: "symbolic links",
        tmp_path / "a\0b": "null byte",
    }.items():
        with pytest.raises(ConfigError, match=why) as caught:
            load_config(path, environ={}, flags={})
        assert str(tmp_path)[:60] in str(caught.value)
        assert "\0" not in str(caught.value)


def test_a_file_in_another_encoding_is_refused_with_the_line(tmp_path: Path) -> None:
    line = refusal("# caf\n# é".encode("latin-1"), folder=tmp_path)
    assert line.startswith("line 2 of ")
    assert line.endswith("is not UTF-8; save the file in that encoding")


def test_a_file_beyond_the_limit_is_not_read_to_its_end() -> None:
    with pytest.raises(ConfigError, match="is over 1 MiB; is it the right file"):
        load_config(Path("/dev/zero"), environ={}, flags={})


def test_a_file_at_the_limit_is_read(tmp_path: Path) -> None:
    assert load(b"#" * FILE_BYTES_MAX, folder=tmp_path) == Config()
