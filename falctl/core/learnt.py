"""
What outlives a router: costs and demand of each app, as values that JSON can hold.

Kept are what hints, tiers and cards cost, how large models are, and how often each hint was wanted: a router that had
forgotten demand would evict what is needed next. Not kept are clients, and first runs that are not told apart yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from falctl.core import checks
from falctl.core.costs import Costs
from falctl.core.demand import Demand

VERSION: Final = 2
"""Of the format and of what its figures mean. Version 1 held one app, without its name; others are not read."""
APPS_MAX: Final = 64
"""Of further apps, in order of their names, nothing is kept."""

Learnt: TypeAlias = tuple[Costs, Demand]


def dump(apps: Mapping[str, Learnt]) -> dict[str, Any]:
    """Return what is worth keeping of each app, by its alias. Later learning does not change it."""
    kept = sorted(apps)[:APPS_MAX]
    return {"version": VERSION, "apps": {alias: dump_app(*apps[alias]) for alias in kept}}


def restore(table: object, *, unnamed: str | None) -> dict[str, Learnt]:
    """
    Return what `dump` was given.

    *unnamed*: whose a file of version 1 is; None: nobody's.

    Raises:
        ValueError: it is of another version, or something in it cannot have been learnt.
    """
    version = checks.part(table, "version")
    if version == 1 and unnamed is not None:
        return {unnamed: restore_app(table)}
    if version != VERSION:
        whose = " by an app without a name" if version == 1 else ""
        msg = f"it is of version {version!r:.20}{whose}, not {VERSION}"
        raise ValueError(msg)
    apps = checks.part(table, "apps")
    if not isinstance(apps, dict):
        msg = f"{ascii(apps)[:80]} is not a table of apps"
        raise ValueError(msg)  # noqa: TRY004 - a file says it, not a caller
    return {alias: restore_app(apps[alias]) for alias in sorted(apps)[:APPS_MAX]}


def dump_app(costs: Costs, demand: Demand) -> dict[str, Any]:
    """Return what is worth keeping of one app."""
    return {"costs": costs.dump(), "demand": demand.dump()}


def restore_app(table: object) -> Learnt:
    """Return what `dump_app` was given. Raises ValueError: something in it cannot have been learnt."""
    return Costs.restored(checks.part(table, "costs")), Demand.restored(checks.part(table, "demand"))
