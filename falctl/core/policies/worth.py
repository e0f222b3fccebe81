"""
What keeping a copy of a model is worth: the load seconds per second that it saves.

Of *n* copies the last one saves ``rate x load x (B(n - 1) - B(n))``, where B is Erlang's share of arrivals that find
all copies busy: a copy more is used only when the others are. The offered load is taken higher than its mean,
because requests come in bursts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from falctl.core.demand import erlang_b
from falctl.core.fleet import Runner
from falctl.core.policies.base import State
from falctl.core.policies.queues import Queues
from falctl.core.sources import SOURCES, Source, bases
from falctl.core.types import Hint


@dataclass(slots=True)
class Worth:
    """Values at one instant; each is computed once."""

    queues: Queues
    horizon_s: float
    """For how long a copy counts on being useful."""
    price: float
    """The request-seconds that a further copy must earn."""
    kin: dict[Hint, list[Hint]] = field(default_factory=dict)
    """By base, what is laid upon it: whoever wants that wants the base."""
    _values: dict[Source, dict[Hint, float]] = field(default_factory=lambda: {s: {} for s in SOURCES})
    _earns: dict[Hint, float] = field(default_factory=dict)

    def forget(self, hint: Hint) -> None:
        """Compute anew what copies of *hint* are worth: there are more or fewer of them."""
        for values in self._values.values():
            values.pop(hint, None)
        self._earns.pop(hint, None)

    def forget_all(self) -> None:
        """Compute everything anew."""
        for values in self._values.values():
            values.clear()
        self._earns.clear()

    def copy_value(self, hint: Hint, copies: int, source: Source) -> float:
        """Return what the last of *copies* saves of loads from *source*, in load seconds per second."""
        queues = self.queues
        rate = queues.state.demand.rate(hint)
        for upon in self.kin.get(hint, ()):
            rate += queues.state.demand.rate(upon)
        offered = queues.knobs.burst * rate * queues.exec_s(hint)
        return (
            rate
            * queues.load_from_s(hint, source)
            * (erlang_b(offered, copies - 1) - erlang_b(offered, copies))
        )

    def value(self, hint: Hint, runner: Runner) -> float:
        """
        Return what the copy of *hint* on *runner* is worth keeping for, in load seconds per second.

        What would come back from host memory is worth a load from there, not one from disk.
        """
        source = runner.source_alone(hint)
        known = self._values[source].get(hint)
        if known is None:
            copies = len(self.queues.copies.get(hint, ()))
            known = self.copy_value(hint, max(copies, 1), source) * (
                self.queues.knobs.spare if copies > 1 else 1.0
            )
            self._values[source][hint] = known
        return known

    def further_copy(self, hint: Hint) -> float:
        """Return the request-seconds that one copy more would earn by being there later."""
        known = self._earns.get(hint)
        if known is None:
            copies = len(self.queues.copies.get(hint, ()))
            known = self._earns[hint] = self.horizon_s * self.copy_value(
                hint, copies + 1, self.queues.nearest(hint)
            )
        return known


def worth_at(queues: Queues, runners: list[Runner]) -> Worth:
    """Return what copies are worth now to a fleet of *runners*."""
    slots = sum(_capacity(runner, queues.state) for runner in runners)
    horizon_s = queues.knobs.horizon * slots * (queues.state.demand.gap_s or 1.0)
    return Worth(queues, horizon_s, _price(queues, max(len(runners), 1)), _kin(queues.state, runners))


def _kin(state: State, runners: list[Runner]) -> dict[Hint, list[Hint]]:
    kin: dict[Hint, list[Hint]] = {}
    for joint in {runner.caps.joint for runner in runners} - {""}:
        for hint in state.demand.hints():
            for base in bases(hint, joint):
                kin.setdefault(base, []).append(hint)
    return kin


def _price(queues: Queues, runners: int) -> float:
    """Return what a further copy must earn: more on a busy fleet, less if loads are short."""
    knobs, exec_s, load_s = queues.knobs, queues.exec_s(None), queues.mean_load_s
    busy = min(1.0, exec_s / max(queues.state.demand.gap_s, 1e-9) / runners)
    short = min(1.0, load_s / exec_s)
    scale = math.pow(busy, knobs.busy_power) * math.pow(short, knobs.short_power)
    return knobs.locality * knobs.price * scale * load_s


def _capacity(runner: Runner, state: State) -> float:
    """Return how many models of mean size fit the runner."""
    if runner.caps.vram_bytes is not None:
        return runner.caps.vram_bytes / state.costs.mean_size.value
    return float(runner.caps.models_max or max(len(state.fleet.held(runner)), 1))
