"""
The policies that can be named in `routing.policy`.

A policy is asked "which waiting request goes to which free runner now?" after every event, again and again until
it answers None. It may keep no state of its own: everything it needs is in the queue and the fleet, so that a
restarted router decides as the old one would have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from falctl.core.policies.affinity import Affinity
from falctl.core.policies.base import Execute, LoadModel, Move, Policy, State
from falctl.core.policies.blind import LeastLoaded
from falctl.core.policies.fal import Fal

POLICIES: Final[tuple[str, ...]] = ("affinity", "fal", "least-loaded")

__all__ = [
    "POLICIES",
    "Affinity",
    "Execute",
    "Fal",
    "LeastLoaded",
    "LoadModel",
    "Move",
    "Policy",
    "State",
    "make_policy",
]


def make_policy(name: str, *, hold_s: float, bypass_max_s: float) -> Policy:
    """
    Return the policy of that name.

    Raises:
        KeyError: there is none; the configuration has checked the name.
    """
    makers: dict[str, Callable[[], Policy]] = {
        "affinity": lambda: Affinity(hold_s=hold_s, bypass_max_s=bypass_max_s),
        "fal": Fal,
        "least-loaded": LeastLoaded,
    }
    return makers[name]()
