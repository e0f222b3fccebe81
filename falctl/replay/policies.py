"""Policies by name: those that falctl ships, and anybody's ``module:Class``."""

from __future__ import annotations

import difflib
import importlib
import sys
from pathlib import Path
from typing import Final, cast

from falctl.core.policies import POLICIES, Policy, make_policy
from falctl.errors import ConfigError

HOLD_S: Final = 10.0
BYPASS_MAX_S: Final = 30.0
"""Of `affinity`: the defaults of routing.hold and routing.bypass_max."""


def find_policy(name: str, *, cwd: Path, seed: int = 0) -> Policy:
    """
    Return a new policy: a shipped one, or an instance of the class that ``module:Class`` names.

    *cwd* goes to the end of the module search path: a file there shadows nothing. *seed* is for `random` alone.

    Raises:
        ConfigError: one line that says what is wrong with *name*, the module or the class.
    """
    if ":" in name:
        return _imported(name, cwd)
    if name not in POLICIES:
        close = difflib.get_close_matches(name, POLICIES, n=1)
        advice = (
            f"did you mean '{close[0]}'?" if close else f"there are {', '.join(POLICIES)} and module:Class"
        )
        msg = f"unknown policy '{name}'; {advice}"
        raise ConfigError(msg)
    return make_policy(name, hold_s=HOLD_S, bypass_max_s=BYPASS_MAX_S, seed=seed)


def _imported(name: str, cwd: Path) -> Policy:
    module_name, _, class_name = name.partition(":")
    if not module_name or not class_name:
        msg = f"policy '{name}' names no class; write module:Class"
        raise ConfigError(msg)
    if str(cwd) not in sys.path:
        sys.path.append(str(cwd))
    try:
        found = getattr(importlib.import_module(module_name), class_name, None)
        policy = found() if isinstance(found, type) else None
    except Exception as error:  # anybody's code runs here, and may raise anything
        msg = f"policy '{name}': {type(error).__name__}: {error}"
        raise ConfigError(msg) from error
    if policy is None:
        msg = f"policy '{name}': {module_name} has no class {class_name}"
        raise ConfigError(msg)
    if not callable(getattr(policy, "choose", None)):
        msg = f"policy '{name}' has no method choose(state, *, now)"
        raise ConfigError(msg)
    return cast("Policy", policy)
