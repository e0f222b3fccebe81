"""Policies by name: those that falctl ships, and anybody's ``module:Class``; for the router and for replays."""

from __future__ import annotations

import difflib
import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from falctl.core.policies import POLICIES, Policy, make_policy
from falctl.core.policies.knobs import Knobs
from falctl.errors import ConfigError

HOLD_S: Final = 10.0
BYPASS_MAX_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Tuning:
    """What the configuration says of the shipped policies; the defaults are those of [routing]."""

    hold_s: float = HOLD_S
    bypass_max_s: float = BYPASS_MAX_S
    locality: float = 1.0
    seed: int = 0
    """What `random` draws from."""


class PolicyError(Exception):
    """Says in words what is wrong with a policy's module or class, and what to do; the caller says where it was named."""


def is_foreign(name: str) -> bool:
    """Return whether *name* is a ``module:Class``, not one that falctl ships."""
    return ":" in name


def find_policy(name: str, *, cwd: Path, tuning: Tuning = Tuning()) -> Policy:
    """
    Return a new policy: a shipped one, or an instance of the class that ``module:Class`` names.

    *cwd* goes to the end of the module search path: a file there shadows nothing.

    Raises:
        ConfigError: one line that says what is wrong with *name*, the module or the class.
    """
    if is_foreign(name):
        try:
            return load_foreign(name, cwd=cwd)
        except PolicyError as error:
            msg = f"policy '{name}': {error}"
            raise ConfigError(msg) from error
    if name not in POLICIES:
        close = difflib.get_close_matches(name, POLICIES, n=1)
        advice = (
            f"did you mean '{close[0]}'?" if close else f"there are {', '.join(POLICIES)} and module:Class"
        )
        msg = f"unknown policy '{name}'; {advice}"
        raise ConfigError(msg)
    return make_policy(
        name,
        hold_s=tuning.hold_s,
        bypass_max_s=tuning.bypass_max_s,
        seed=tuning.seed,
        knobs=Knobs(locality=tuning.locality),
    )


def load_foreign(name: str, *, cwd: Path) -> Policy:
    """
    Import what ``module:Class`` names, and return an instance made without arguments.

    Raises:
        PolicyError: there is no such module or class, its code raised, or it is no policy.
    """
    module_name, _, class_name = name.partition(":")
    if not module_name or not class_name:
        msg = "it names no class; write module:Class"
        raise PolicyError(msg)
    if str(cwd) not in sys.path:
        sys.path.append(str(cwd))
    importlib.invalidate_caches()
    try:
        found = getattr(importlib.import_module(module_name), class_name, None)
        policy = found() if isinstance(found, type) else None
    except ModuleNotFoundError as error:
        raise PolicyError(_not_found(error, cwd)) from error
    except Exception as error:  # anybody's code runs here, and may raise anything
        msg = f"{type(error).__name__}: {error}"
        raise PolicyError(msg) from error
    if policy is None:
        msg = f"{module_name} has no class {class_name}"
        raise PolicyError(msg)
    if not callable(getattr(policy, "choose", None)):
        msg = f"{class_name} has no method choose(state, *, now)"
        raise PolicyError(msg)
    return cast("Policy", policy)


def _not_found(error: ModuleNotFoundError, cwd: Path) -> str:
    first = (error.name or "").partition(".")[0]
    advice = f"modules are looked for in this Python's packages, then in {cwd}: write {first}.py there, or install it"
    return f"there is no module {error.name!r}; {advice}"
