"""
ModelMesh's placement (kserve/modelmesh ea13cdc): one distributed LRU.

A request goes to the least busy instance that has its model. When that one is busy and the model has fewer than two
copies, and when nobody has it, to the instance whose least recently used model is the oldest, among those that are
about as idle as the idlest; an instance with room comes first.
"""

from __future__ import annotations

from benchmarks.peers._bound import Bound, free_room
from falctl.core.fleet import Runner
from falctl.core.policies.base import State
from falctl.core.queue import Waiting
from falctl.core.types import Hint, RunnerId


class ModelMesh(Bound):
    """*busy*: outstanding requests from which a second copy is made; *copies*: how many there may be."""

    def __init__(self, busy: int = 4, copies: int = 2) -> None:
        super().__init__()
        self.busy = busy
        self.copies = copies
        self._used_at: dict[tuple[RunnerId, Hint], float] = {}

    def pick(self, waiting: Waiting, state: State, *, now: float) -> Runner:
        """Return an instance, always."""
        del now
        runners = list(state.fleet.runners.values())
        hint = waiting.hint
        own = [r for r in runners if hint is not None and self.will_have(hint, r)]
        if own:
            best = min(own, key=self.outstanding)
            if self.outstanding(best) < self.busy or len(own) >= self.copies:
                return best
        others = [r for r in runners if r not in own] or runners
        idlest = min(map(self.outstanding, others))
        idle = [r for r in others if self.outstanding(r) <= idlest + 1]
        return min(idle, key=lambda r: (-max(free_room(r, state), 0.0), self._tail(r)))

    def begun(self, waiting: Waiting, runner: Runner, *, cold: bool, now: float) -> None:
        """Note when a model is used, from its load on."""
        del cold
        if waiting.hint is not None:
            self._used_at[runner.runner, waiting.hint] = now

    def _tail(self, runner: Runner) -> float:
        """Return when the least recently used model of *runner* was used; -1 for no model."""
        resident = {*(runner.hints or ()), *runner.loading}
        return min((self._used_at.get((runner.runner, hint), 0.0) for hint in resident), default=-1.0)
