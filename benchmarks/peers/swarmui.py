"""
SwarmUI's backend choice (BackendHandler.cs, 062407c7), with as many models a runner as it holds.

Any waiting request whose model is on a free backend goes first, oldest first. Else the model under the highest
pressure, 10 x its requests + the seconds that its oldest waits, is loaded on the backend that was released the
longest ago; but only 1.5 s after it began to wait, unless just one backend is free. A model that is being loaded is
not loaded elsewhere. SwarmUI itself holds one model a backend: replay it with ``--slots 1`` for that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from falctl.core.fleet import Runner
from falctl.core.policies.base import Execute, State
from falctl.core.queue import Waiting
from falctl.core.types import Hint, RunnerId

PATIENCE_S: Final = 1.5
PER_REQUEST_S: Final = 10.0


class SwarmUI:
    """See the module. It loads by sending a request to a runner that is cold for it."""

    tick_s: ClassVar[float] = 0.1

    def __init__(self) -> None:
        self._busy: set[RunnerId] = set()
        self._released: dict[RunnerId, float] = {}

    def choose(self, state: State, *, now: float) -> Execute | None:
        """Return a hit, else a request that is worth a load now."""
        self._note_released(state, now)
        free = [r for r in state.fleet.runners.values() if r.free_slots]
        if not free:
            return None
        groups = _groups(state)
        return _hit(groups, free) or self._load(groups, state, now)

    def _note_released(self, state: State, now: float) -> None:
        for runner in state.fleet.runners.values():
            if runner.in_use:
                self._busy.add(runner.runner)
            elif runner.runner in self._busy:
                self._busy.remove(runner.runner)
                self._released[runner.runner] = now

    def _load(self, groups: dict[Hint | None, _Group], state: State, now: float) -> Execute | None:
        runners = state.fleet.runners.values()
        coming = {running.hint for r in runners for running in r.in_use.values() if not running.warm}
        wanted = [group for hint, group in groups.items() if hint not in coming]
        if not wanted:
            return None
        head = max(wanted, key=lambda group: (group.pressure(now), -group.head.order)).head
        free = [r for r in runners if r.free_slots]
        if len(free) > 1 and now - head.arrived_at < PATIENCE_S - 1e-6:
            return None
        runner = min(free, key=lambda r: (self._released.get(r.runner, 0.0), r.runner))
        return Execute(head.request, runner.runner, "highest pressure")


@dataclass(slots=True)
class _Group:
    """What waits for one model."""

    head: Waiting
    count: int = 0

    def pressure(self, now: float) -> float:
        return PER_REQUEST_S * self.count + now - self.head.arrived_at


def _groups(state: State) -> dict[Hint | None, _Group]:
    groups: dict[Hint | None, _Group] = {}
    for waiting in state.queue:
        groups.setdefault(waiting.hint, _Group(waiting)).count += 1
    return groups


def _hit(groups: dict[Hint | None, _Group], free: list[Runner]) -> Execute | None:
    resident: dict[Hint | None, Runner] = {None: free[0]}
    for runner in free:
        for hint in runner.hints or ():
            resident.setdefault(hint, runner)
    heads = [groups[hint].head for hint in resident if hint in groups]
    if not heads:
        return None
    head = min(heads, key=lambda w: w.order)
    return Execute(head.request, resident[head.hint].runner, "its model is on a free backend")
