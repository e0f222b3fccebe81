"""
The three places where a setting can be written: the file, the environment, the command line.

Each is read into the same shape, and unknown names are refused here, where the place is known. Values are judged
later, by `falctl.config`; until then each one remembers where it came from.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Final

from falctl.config_apps import ENV_APPS, check_one_or_several, read_apps
from falctl.config_keys import (
    APPS,
    ENV_PREFIX,
    KEYS,
    SECTIONS,
    Key,
    Name,
    did_you_mean,
    nearest,
    plain,
    shown,
)
from falctl.config_values import Kind
from falctl.errors import ConfigError

FILE_BYTES_MAX: Final = 1 << 20
_COMMAND_LINE: Final = "command line"


@dataclass(frozen=True, slots=True)
class Setting:
    """A value as it was written, and the name of the place."""

    value: object
    origin: str


Settings = dict[Name, Setting]


def read_file(path: Path) -> Settings:
    """Return what the file says. Blocks. Raises ConfigError if it cannot be read or holds an unknown name."""
    settings: Settings = {}
    origin = plain(path.name)
    tables = _parse_toml(_read_text(path), origin=origin)
    for name, value in read_apps(tables.pop(APPS, {}), origin=origin).items():
        settings[name] = Setting(value, origin)
    for section, table in tables.items():
        for key, value in _check_section(section, table, origin=origin).items():
            _check_key(section, key, origin=origin)
            settings[section, key] = Setting(value, origin)
    check_one_or_several({name: setting.value for name, setting in settings.items()}, origin=origin)
    if paths := settings.get(("models", "paths")):
        settings["models", "paths"] = Setting(_anchored(paths.value, path), origin)
    return settings


def read_environ(environ: Mapping[str, str]) -> Settings:
    """Return what FALCTL_SECTION_KEY variables say; others are not ours. Raises ConfigError for an unknown KEY."""
    keys = {key.env: key for key in KEYS.values()}
    sections = {f"{ENV_PREFIX}{section}_".upper(): section for section in SECTIONS}
    settings: Settings = {}
    if theirs := sorted(name for name in environ if name.startswith(ENV_APPS)):
        msg = f"environment variable {plain(theirs[0])}: apps are named in the file alone; write [apps.NAME] there"
        raise ConfigError(msg)
    for variable in sorted(name for name in environ if name.startswith(tuple(sections))):
        if (key := keys.get(variable)) is not None:
            settings[key.section, key.key] = Setting(_from_text(key, environ[variable]), variable)
            continue
        prefix = next(prefix for prefix in sections if variable.startswith(prefix))
        close = nearest(variable.removeprefix(prefix), _keys_of(sections[prefix]))
        advice = f"did you mean {KEYS[sections[prefix], close].env}?" if close else "unset it"
        msg = f"unknown environment variable {plain(variable)}; {advice}"
        raise ConfigError(msg)
    return settings


def read_flags(flags: Mapping[str, object]) -> Settings:
    """Return what the flags say, None being a flag that was not given. Raises ConfigError for an unknown name."""
    settings: Settings = {}
    for name, value in flags.items():
        if value is None:
            continue
        section, _, key = name.partition(".")
        _check_section(section, {}, origin=f"the {_COMMAND_LINE}")
        _check_key(section, key, origin=f"the {_COMMAND_LINE}")
        read = _from_text(KEYS[section, key], value) if isinstance(value, str) else value
        settings[section, key] = Setting(read, _COMMAND_LINE)
    return settings


def _read_text(path: Path) -> str:
    name = plain(str(path))
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        msg = f"there is no configuration file {name}; name one that exists, or none to use the defaults"
        raise ConfigError(msg) from None
    except (OSError, ValueError) as error:  # ValueError: NUL or a lone surrogate in the name
        why = plain(getattr(error, "strerror", None) or str(error))
        msg = f"cannot read the configuration file {name} ({why}); name a file that you may read"
        raise ConfigError(msg) from None
    if len(content) > FILE_BYTES_MAX:
        msg = f"the configuration file {name} is over {FILE_BYTES_MAX >> 20} MiB; is it the right file?"
        raise ConfigError(msg)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        msg = f"line {line} of {name} is not UTF-8; save the file in that encoding"
        raise ConfigError(msg) from None


def _parse_toml(text: str, *, origin: str) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        why = "lists or tables are nested too deeply"
    except tomllib.TOMLDecodeError as error:
        lines = text.count("\n") + 1
        why = str(error).replace("at end of document", f"at the end, line {lines}")
    except ValueError:  # sys.set_int_max_str_digits
        why = "a number has too many digits"
    msg = f"{origin} is not valid TOML: {plain(why)}; texts stand in quotes, lists in brackets"
    raise ConfigError(msg)


def _check_section(section: str, table: object, *, origin: str) -> dict[str, object]:
    if section not in SECTIONS:
        owners = [owner for owner, key in KEYS if key == section]
        advice = f"put this key below [{owners[0]}]" if owners else did_you_mean(section, [*SECTIONS, APPS])
        msg = f"unknown section '{plain(section)}' in {origin}; {advice}"
        raise ConfigError(msg)
    if not isinstance(table, dict):
        msg = f"{section} = {shown(table)} in {origin} is not a section; write [{section}] and its keys below it"
        raise ConfigError(msg)
    return table


def _check_key(section: str, key: str, *, origin: str) -> None:
    if (section, key) in KEYS:
        return
    owners = [owner for owner, name in KEYS if name == key]
    advice = f"it belongs in [{owners[0]}]" if owners else did_you_mean(key, _keys_of(section))
    msg = f"unknown key '{plain(key)}' in [{section}] of {origin}; {advice}"
    raise ConfigError(msg)


def _keys_of(section: str) -> list[str]:
    return [key for owner, key in KEYS if owner == section]


def _anchored(value: object, file: Path) -> object:
    """Make relative folders start where the file lies: they must not depend on where falctl was started."""
    if not isinstance(value, list):
        return value
    base = file.absolute().parent
    return [str(base / one) if isinstance(one, str) and one and one[0] != "~" else one for one in value]


def _from_text(key: Key, text: str) -> object:
    """Turn the text of a variable or flag into what a file would have said; what cannot be stays text."""
    match key.kind:
        case Kind.WHOLE | Kind.NUMBER | Kind.DURATION | Kind.KEEP | Kind.SIZE | Kind.BUDGET:
            return _number(text)
        case Kind.LIST:
            return _list(text)
        case Kind.TABLE:
            return _table(text)
        case Kind.TEXT | Kind.CHOICE | Kind.POLICY | Kind.GPUS:
            return text


def _number(text: str) -> object:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return text
    return number if isfinite(number) else text


def _list(text: str) -> object:
    # A host may be [::1]: brackets make a TOML list only if nothing or a quote follows the first.
    if re.match(r"""\s*\[\s*["'\]]""", text):
        try:
            return tomllib.loads(f"list = {text.strip()}")["list"]
        except (ValueError, RecursionError):
            return text
    return [part.strip() for part in text.split(",") if part.strip()]


def _table(text: str) -> object:
    """Return the table that *text* says in TOML, or as ``name=value,name=value``, whose values may be numbers."""
    if text.lstrip().startswith("{"):
        try:
            return tomllib.loads(f"table = {text.strip()}")["table"]
        except (ValueError, RecursionError):
            return text
    parts = [part.rpartition("=") for part in text.split(",") if part.strip()]
    if not all(equals and name.strip() for name, equals, _ in parts):
        return text
    return {name.strip(): _number(value.strip()) for name, _, value in parts}
