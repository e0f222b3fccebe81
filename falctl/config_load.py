"""
Put the configuration together: flag over environment variable over file over default, key by key.

Whatever is wrong becomes one line that names the key, the value, the place where it was written and what to write
instead. pydantic judges the values; its own words never reach a person.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from falctl.config import CROSS_CHECK, Config
from falctl.config_keys import KEYS, Key, shown
from falctl.config_sources import Setting, Settings, read_environ, read_file, read_flags
from falctl.config_values import Kind
from falctl.errors import ConfigError

FILE_NAME: Final = "falctl.toml"
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
        ConfigError: a name or value is wrong, or the file cannot be read. One line: the first problem found.
    """
    settings = read_file(path) if path is not None else {}
    settings |= read_environ(environ)
    settings |= read_flags(flags)
    tables: dict[str, dict[str, object]] = {}
    for (section, key), setting in settings.items():
        tables.setdefault(section, {})[key] = setting.value
    try:
        return Config.model_validate(tables)
    except ValidationError as error:
        raise ConfigError(_explain(error.errors(include_url=False)[0], settings)) from None


def _explain(error: ErrorDetails, settings: Settings) -> str:
    section, *rest = error["loc"]
    context = error.get("ctx", {})
    key = KEYS[str(section), str(context["key"] if error["type"] == CROSS_CHECK else rest[0])]
    setting = settings.get((key.section, key.key), Setting(key.field.default, "default"))
    index = rest[1] if key.kind is Kind.LIST and len(rest) > 1 else None
    where = f"{key.name}{_subject(key, setting.value, index)} ({setting.origin})"
    if error["type"] == CROSS_CHECK:
        return f"{where} {context['problem']}"
    if error["type"] == "value_error":  # raised by a parser of falctl.config_values, which names the fix
        return f"{where}: {context['error']}"
    out = "out of bounds; " if error["type"].startswith(("greater_than", "less_than")) else ""
    return f"{where}: {out}write {key.expected() if index is None else 'a text in quotes'}"


def _subject(key: Key, value: object, index: object) -> str:
    part = ""
    if isinstance(index, int) and isinstance(value, list | tuple):
        part, value = f"[{index}]", value[index]
    return part if key.name == _SECRET else f"{part} = {shown(value)}"
