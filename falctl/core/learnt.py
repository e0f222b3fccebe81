"""
What outlives a router: costs and demand, as values that JSON can hold.

Kept are what hints, tiers and cards cost, how large models are, and how often each hint was wanted: a router that had
forgotten demand would evict what is needed next. Not kept are clients, and first runs that are not told apart yet.
"""

from __future__ import annotations

from typing import Any, Final

from falctl.core import checks
from falctl.core.costs import Costs
from falctl.core.demand import Demand

VERSION: Final = 1
"""Of the format and of what its figures mean; others are not read."""


def dump(costs: Costs, demand: Demand) -> dict[str, Any]:
    """Return what is worth keeping. Later learning does not change it."""
    return {"version": VERSION, "costs": costs.dump(), "demand": demand.dump()}


def restore(table: object) -> tuple[Costs, Demand]:
    """
    Return what `dump` was given.

    Raises:
        ValueError: it is of another version, or something in it cannot have been learnt.
    """
    version = checks.part(table, "version")
    if version != VERSION:
        msg = f"it is of version {version!r:.20}, not {VERSION}"
        raise ValueError(msg)
    return Costs.restored(checks.part(table, "costs")), Demand.restored(checks.part(table, "demand"))
