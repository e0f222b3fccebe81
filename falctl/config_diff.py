"""What changed between two configurations, and which changes a running falctl can take up without a restart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from falctl.config import Config

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
        "log.level",
    }
)
"""Keys that are read anew for every request, so that a reload applies them; every other one needs a restart."""


@dataclass(frozen=True, slots=True)
class Change:
    """A key whose value differs. ``live``: a reload applies it."""

    key: str
    old: object
    new: object
    live: bool


def diff_configs(old: Config, new: Config) -> tuple[Change, ...]:
    """Return the keys that differ, as ``section.key``, in the order of the file."""
    return tuple(
        Change(name, before, after, live=name in LIVE)
        for section in Config.model_fields
        for key, before in getattr(old, section)
        if (after := getattr(getattr(new, section), key)) != before
        for name in [f"{section}.{key}"]
    )


def take_live(old: Config, new: Config) -> Config:
    """Return *old* with the values of *new* where a reload applies them: what a falctl runs by after it."""
    tables = old.model_dump()
    for section, table in tables.items():
        table.update(
            {key: getattr(getattr(new, section), key) for key in table if f"{section}.{key}" in LIVE}
        )
    return Config.model_validate(tables)
