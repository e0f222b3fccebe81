"""The tables of the file that name apps, ``[apps.NAME]``: their names checked, their values still as they are written."""

from __future__ import annotations

import re
from typing import Final

from falctl.config import AppConfig
from falctl.config_keys import APPS, ENV_PREFIX, KEYS, Name, did_you_mean, plain, shown
from falctl.errors import ConfigError

ENV_APPS: Final = f"{ENV_PREFIX}{APPS}_".upper()
"""How a variable begins that would be a key of an app, if there were such variables."""
APPS_MAX: Final = 64

_ALIAS: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_AS_A_TABLE: Final = "is not a section; write [apps.NAME] and its keys below it"


def read_apps(apps: object, *, origin: str) -> dict[Name, object]:
    """Return the values of *apps*, the table of the apps, by section and key. Raises ConfigError for a wrong name."""
    found: dict[Name, object] = {}
    for alias, table in _tables(apps, origin=origin).items():
        section = f"{APPS}.{alias}"
        if not isinstance(table, dict):
            msg = f"{plain(section)} = {shown(table)} in {origin} {_AS_A_TABLE}"
            raise ConfigError(msg)
        if not _ALIAS.fullmatch(alias):
            msg = (
                f"[{APPS}.{shown(alias)}] in {origin} is no alias; "
                "write up to 64 letters and digits, with . _ - between them"
            )
            raise ConfigError(msg)
        if inner := next((name for name, value in table.items() if isinstance(value, dict)), None):
            msg = f'[{section}.{plain(inner)}] in {origin}: a name with a dot stands in quotes; write [{APPS}."{alias}.{plain(inner)}"]'
            raise ConfigError(msg)
        if "app" not in table:
            msg = f'[{section}] in {origin} names no app; write app = "module:Class" or "path.py::Class" below it'
            raise ConfigError(msg)
        for key, value in table.items():
            _check_key(section, key, origin=origin)
            found[section, key] = value
    return found


def check_one_or_several(values: dict[Name, object], *, origin: str) -> None:
    """Raise ConfigError if *values*, all that the file says, name one app and several, or count runners of neither."""
    sections = list(dict.fromkeys(section for section, _ in values if section.startswith(f"{APPS}.")))
    if not sections:
        return
    for key, instead in (("app", "that is another app"), ("count", "each app counts its own runners")):
        if ("runners", key) in values:
            told = f"runners.{key} = {shown(values['runners', key])} in {origin} beside [{sections[0]}]"
            msg = f"{told}: {instead}; write it below an [apps.NAME]"
            raise ConfigError(msg)


def _tables(apps: object, *, origin: str) -> dict[str, object]:
    if not isinstance(apps, dict):
        msg = f"{APPS} = {shown(apps)} in {origin} {_AS_A_TABLE}"
        raise ConfigError(msg)
    if len(apps) > APPS_MAX:
        msg = f"{len(apps)} apps in {origin}, and at most {APPS_MAX} can be served; remove some"
        raise ConfigError(msg)
    return apps


def _check_key(section: str, key: str, *, origin: str) -> None:
    if key in AppConfig.model_fields:
        return
    owners = [owner for owner, name in KEYS if name == key]
    advice = f"it belongs in [{owners[0]}]" if owners else did_you_mean(key, AppConfig.model_fields)
    msg = f"unknown key '{plain(key)}' in [{section}] of {origin}; {advice}"
    raise ConfigError(msg)
