"""
Ray Serve's model multiplexing (docs 2.57, ``request_router.py``, MultiplexMixin).

A request goes to one of the replicas that have its model, the less loaded of two drawn at random; if those are at
``max_ongoing_requests``, to one of the replicas with the fewest models; then to any. Each replica evicts its least
recently used model. Ray would wait a random second or two for a match first; that is left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from benchmarks.peers._bound import Bound
from falctl.core.fleet import Runner
from falctl.core.policies.base import State
from falctl.core.queue import Waiting


class RayServe(Bound):
    """*max_ongoing* is Ray's default of its ``max_ongoing_requests``."""

    def __init__(self, max_ongoing: int = 5, seed: int = 1) -> None:
        super().__init__()
        self.max_ongoing = max_ongoing
        self._random = Random(seed)

    def pick(self, waiting: Waiting, state: State, *, now: float) -> Runner | None:
        """Return a replica below ``max_ongoing_requests``, by the rule; None when all have as many."""
        del now
        runners = list(state.fleet.runners.values())
        open_runners = [r for r in runners if self.outstanding(r) < self.max_ongoing]
        if not open_runners:
            return None
        fewest = min(len(r.hints or ()) + len(r.loading) for r in runners)
        hint = waiting.hint
        return (
            self._less_loaded([r for r in runners if hint is not None and self.will_have(hint, r)])
            or self._less_loaded(r for r in runners if len(r.hints or ()) + len(r.loading) == fewest)
            or self._less_loaded(open_runners)
        )

    def _less_loaded(self, candidates: Iterable[Runner]) -> Runner | None:
        found = list(candidates)
        if not found:
            return None
        two = self._random.sample(found, min(2, len(found)))
        best = min(two, key=self.outstanding)
        return best if self.outstanding(best) < self.max_ongoing else None


class RayServeOne(RayServe):
    """With ``max_ongoing_requests`` 1, as a GPU that runs one image at a time would be configured."""

    def __init__(self) -> None:
        super().__init__(max_ongoing=1)
