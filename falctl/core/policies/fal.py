"""
`fal`: the rule that fal documents under "Optimizing Routing Behavior".

The hint is the one in the header. A runner with a free slot that lists exactly this hint is preferred; then one
whose list is empty, since an empty list fits any request; then any, by round robin. A match that is busy is not
waited for. For an app without provide_hints, the runner that served the hint last counts as the match.
"""

from __future__ import annotations

from falctl.core.fleet import Fleet, Runner
from falctl.core.policies.base import Execute, State
from falctl.core.types import Hint


class Fal:
    """First come, first served; see the module."""

    def choose(self, state: State, *, now: float) -> Execute | None:
        """Return a dispatch whenever a slot is free; *now* plays no part."""
        del now
        waiting = state.queue.oldest()
        free = state.fleet.free()
        if waiting is None or not free:
            return None
        wanted = waiting.wanted
        hint = wanted.hint if wanted is not None and wanted.source == "header" else None
        runner, reason = _pick(hint, free, state.fleet)
        return Execute(waiting.request, runner.runner, reason)


def _pick(hint: Hint | None, free: list[Runner], fleet: Fleet) -> tuple[Runner, str]:
    if hint is None:
        return free[0], "no hint: round robin"
    for runner in free:
        if fleet.warm(hint, runner):
            return runner, "hint matches"
    for runner in free:
        if runner.hints is not None and not runner.hints:
            return runner, "no match: empty list fits any request"
    return free[0], "no match: round robin"
