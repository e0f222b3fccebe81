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
from falctl.core.policies.auto import Auto
from falctl.core.policies.base import Execute, LoadModel, Move, Policy, State
from falctl.core.policies.blind import LeastLoaded, Random
from falctl.core.policies.fal import Fal
from falctl.core.policies.knobs import Knobs

POLICIES: Final[tuple[str, ...]] = ("auto", "affinity", "fal", "least-loaded", "random")

__all__ = [
    "POLICIES",
    "Affinity",
    "Auto",
    "Execute",
    "Fal",
    "LeastLoaded",
    "LoadModel",
    "Move",
    "Policy",
    "Random",
    "State",
    "make_policy",
]


def make_policy(
    name: str, *, hold_s: float, bypass_max_s: float, seed: int = 0, knobs: Knobs | None = None
) -> Policy:
    """
    Return the policy of that name; *seed* is what `random` draws from, *knobs* are those of `auto`.

    Raises:
        KeyError: there is none; the configuration has checked the name.
    """
    makers: dict[str, Callable[[], Policy]] = {
        "auto": lambda: Auto(knobs),
        "affinity": lambda: Affinity(hold_s=hold_s, bypass_max_s=bypass_max_s),
        "fal": Fal,
        "least-loaded": LeastLoaded,
        "random": lambda: Random(seed),
    }
    return makers[name]()
