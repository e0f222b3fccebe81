"""
What keeping a copy of a model is worth: the load seconds per second that it saves.

Of *n* copies the last one saves ``rate x load x (B(n - 1) - B(n))``, where B is Erlang's share of arrivals that find
all copies busy: a copy more is used only when the others are. The offered load is taken higher than its mean,
because requests come in bursts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from falctl.core.demand import erlang_b
from falctl.core.fleet import Runner
from falctl.core.policies.base import State
from falctl.core.policies.knobs import Knobs
from falctl.core.types import Hint

LEAST_S: Final = 1e-6
"""An execution is taken to need at least this, so that it can be divided by."""


@dataclass(slots=True)
class Worth:
    """Values at one instant; each is computed once. ``copies``: by model, how many there are."""

    state: State
    knobs: Knobs
    copies: dict[Hint, list[Runner]]
    horizon_s: float
    """For how long a copy counts on being useful."""
    price: float
    """The request-seconds that a further copy must earn."""
    _values: dict[Hint, float] = field(default_factory=dict)
    _earns: dict[Hint, float] = field(default_factory=dict)

    def forget(self, hint: Hint) -> None:
        """Compute anew what copies of *hint* are worth: there are more or fewer of them."""
        self._values.pop(hint, None)
        self._earns.pop(hint, None)

    def copy_value(self, hint: Hint, copies: int) -> float:
        """Return what the last of *copies* saves, in load seconds per second."""
        costs = self.state.costs
        rate = self.state.demand.rate(hint)
        offered = self.knobs.burst * rate * max(costs.exec_s(hint), LEAST_S)
        return rate * costs.load_s(hint) * (erlang_b(offered, copies - 1) - erlang_b(offered, copies))

    def value(self, hint: Hint) -> float:
        """Return what one resident copy of *hint* is worth keeping for, in load seconds per second."""
        known = self._values.get(hint)
        if known is None:
            copies = len(self.copies.get(hint, ()))
            known = self.copy_value(hint, max(copies, 1)) * (self.knobs.spare if copies > 1 else 1.0)
            self._values[hint] = known
        return known

    def further_copy(self, hint: Hint) -> float:
        """Return the request-seconds that one copy more would earn by being there later."""
        known = self._earns.get(hint)
        if known is None:
            copies = len(self.copies.get(hint, ()))
            known = self._earns[hint] = self.horizon_s * self.copy_value(hint, copies + 1)
        return known


def worth_at(state: State, knobs: Knobs, runners: list[Runner], copies: dict[Hint, list[Runner]]) -> Worth:
    """Return what copies are worth now to a fleet of *runners* that holds *copies*."""
    slots = sum(_capacity(runner, state) for runner in runners)
    horizon_s = knobs.horizon * slots * (state.demand.gap_s or 1.0)
    return Worth(state, knobs, copies, horizon_s, _price(state, knobs, max(len(runners), 1)))


def _price(state: State, knobs: Knobs, runners: int) -> float:
    """Return what a further copy must earn: more on a busy fleet, less if loads are short."""
    exec_s, load_s = max(state.costs.mean_exec.value, LEAST_S), state.costs.mean_load.value
    busy = min(1.0, exec_s / max(state.demand.gap_s, 1e-9) / runners)
    short = min(1.0, load_s / exec_s)
    scale = math.pow(busy, knobs.busy_power) * math.pow(short, knobs.short_power)
    return knobs.locality * knobs.price * scale * load_s


def _capacity(runner: Runner, state: State) -> float:
    """Return how many models of mean size fit the runner."""
    if runner.caps.vram_bytes is not None:
        return runner.caps.vram_bytes / state.costs.mean_size.value
    return float(runner.caps.models_max or max(len(state.fleet.held(runner)), 1))
