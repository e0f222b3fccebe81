"""What changed between two configurations, and which changes a running falctl can take up without a restart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from falctl.config import Config
from falctl.config_keys import APPS

LIVE: Final = frozenset(
    {
        "server.hosts",
        "server.allow_origins",
        "server.api_keys",
        "server.max_body",
        "server.body_timeout",
        "server.send_timeout",
        "queue.max",
        "queue.max_per_client",
        "queue.keep",
        "queue.max_disk",
        "queue.max_bytes",
        "routing.policy",
        "routing.locality",
        "routing.hint_from",
        "routing.hold",
        "routing.bypass_max",
        "files.keep",
        "files.max_upload",
        "cache.preload",
        "log.level",
    }
)
"""Keys that a reload applies; every other one needs a restart."""
LIVE_OF_AN_APP: Final = frozenset({"preload"})
"""The same, of the keys of [apps.NAME]."""


@dataclass(frozen=True, slots=True)
class Change:
    """A key whose value differs. ``live``: a reload applies it."""

    key: str
    old: object
    new: object
    live: bool


def diff_configs(old: Config, new: Config) -> tuple[Change, ...]:
    """Return the keys that differ, as ``section.key``, in the order of the file; of an app that comes or goes all."""
    before, after = _by_key(old), _by_key(new)
    return tuple(
        Change(name, before.get(name), after.get(name), live=_is_live(name))
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    )


def _by_key(config: Config) -> dict[str, object]:
    sections = {name: getattr(config, name) for name in Config.model_fields if name != APPS}
    sections |= {f"{APPS}.{alias}": app for alias, app in config.apps.items()}
    return {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys}


def take_live(old: Config, new: Config) -> Config:
    """Return *old* with the values of *new* where a reload applies them: what a falctl runs by after it."""
    tables = old.model_dump()
    apps = {
        f"{APPS}.{alias}": (tables[APPS][alias], app) for alias, app in new.apps.items() if alias in old.apps
    }
    sections = {name: (table, getattr(new, name)) for name, table in tables.items() if name != APPS}
    for section, (table, values) in (sections | apps).items():
        table.update({key: getattr(values, key) for key in table if _is_live(f"{section}.{key}")})
    return Config.model_validate(tables)


def _is_live(name: str) -> bool:
    section, _, key = name.rpartition(".")
    return name in LIVE or (section.startswith(f"{APPS}.") and key in LIVE_OF_AN_APP)
