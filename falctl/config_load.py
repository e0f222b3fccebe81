"""
Put the configuration together: flag over environment variable over file over default, key by key.

Whatever is wrong becomes one line that names the key, the value, the place where it was written and what to write
instead. pydantic judges the values; its own words never reach a person.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from falctl.config import CROSS_CHECK, Config
from falctl.config_keys import APPS, KEYS, Key, app_key, shown
from falctl.config_sources import Setting, Settings, read_environ, read_file, read_flags
from falctl.config_values import KEEP_ALIVE_CHOICE, Kind
from falctl.errors import ConfigError

FILE_NAME: Final = "falctl.toml"
_PARTED: Final = {
    Kind.LIST: "a text in quotes",
    Kind.TABLE: f'a duration such as "10m": {KEEP_ALIVE_CHOICE}',
}
"""Kinds that are made of parts, and what to write as one."""
_SECRET: Final = "server.api_keys"  # noqa: S105 - the name of a key, whose values must not reach a log


def find_config(cwd: Path) -> Path | None:
    """Return ``falctl.toml`` in *cwd* if there is one, readable or not."""
    path = cwd / FILE_NAME
    try:
        path.lstat()
    except OSError:
        return None
    return path


def load_config(path: Path | None, *, environ: Mapping[str, str], flags: Mapping[str, object]) -> Config:
    """
    Return the configuration: *flags*, else FALCTL_SECTION_KEY in *environ*, else the file *path*, else the default.

    The keys of *flags* are like ``"runners.app"``; None is a flag that was not given. With *path* None no file is
    read.

    Raises:
        ConfigError: a name or value is wrong, or the file cannot be read. A line for each wrong value; of names the first.
    """
    settings = read_file(path) if path is not None else {}
    settings |= read_environ(environ)
    settings |= read_flags(flags)
    settings = _one_or_several(settings)
    try:
        return Config.model_validate(_tables(settings))
    except ValidationError as error:
        raise ConfigError(_explain_all(error.errors(include_url=False), settings)) from None


def _one_or_several(settings: Settings) -> Settings:
    """
    Return *settings* without the apps of the file when a variable or a flag names one app.

    Raises:
        ConfigError: a variable or flag counts runners, and nobody knows of which app.
    """
    sections = [section for section, key in settings if key == "app" and section.startswith(f"{APPS}.")]
    if sections and ("runners", "app") in settings:  # the file cannot have both
        return {name: setting for name, setting in settings.items() if name[0] not in sections}
    if sections and (count := settings.get(("runners", "count"))) is not None:
        told = f"runners.count = {shown(count.value)} ({count.origin})"
        msg = (
            f"{told} counts the runners of one app, and there are several; write count below [{sections[0]}]"
        )
        raise ConfigError(msg)
    return settings


def _tables(settings: Settings) -> dict[str, dict[str, Any]]:
    tables: dict[str, dict[str, Any]] = {}
    for (section, key), setting in settings.items():
        table, _, alias = section.partition(".")
        place = tables.setdefault(table, {})
        (place.setdefault(alias, {}) if alias else place)[key] = setting.value
    return tables


def _explain_all(errors: Iterable[ErrorDetails], settings: Settings) -> str:
    """Return a line for each key that has a wrong value: of several kinds of value that it could be, none is it."""
    lines: dict[tuple[str, ...], str] = {}
    for error in errors:
        length = 3 if error["loc"][0] == APPS else 2
        key = tuple(map(str, error["loc"][:length]))
        if key not in lines:
            lines[key] = _explain(error, settings)
    return "\n".join(lines.values())


def _explain(error: ErrorDetails, settings: Settings) -> str:
    section, *rest = map(str, error["loc"])
    context = error.get("ctx", {})
    if section == APPS:
        alias, name, *rest = rest
        key = app_key(f"{APPS}.{alias}", name)
    else:
        key = KEYS[section, context["key"] if error["type"] == CROSS_CHECK else rest.pop(0)]
    setting = settings.get((key.section, key.key), Setting(key.field.default, "default"))
    part: int | str | None = None
    if rest and key.kind in _PARTED:
        part = int(rest[0]) if key.kind is Kind.LIST else rest[0]
    where = f"{key.name}{_subject(key, setting.value, part)} ({setting.origin})"
    if error["type"] == CROSS_CHECK:
        return f"{where} {context['problem']}"
    if error["type"] == "value_error":  # raised by a parser of falctl.config_values, which names the fix
        return f"{where}: {context['error']}"
    out = "out of bounds; " if error["type"].startswith(("greater_than", "less_than")) else ""
    return f"{where}: {out}write {key.expected() if part is None else _PARTED[key.kind]}"


def _subject(key: Key, value: object, part: int | str | None) -> str:
    shown_part = ""
    if isinstance(part, int) and isinstance(value, list | tuple):
        shown_part, value = f"[{part}]", value[part]
    elif isinstance(value, dict) and part in value:
        shown_part, value = f"[{shown(part)}]", value[part]
    return shown_part if key.name == _SECRET else f"{shown_part} = {shown(value)}"
