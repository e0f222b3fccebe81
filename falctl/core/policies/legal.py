"""Whether a move can be made: what the scheduler asserts of its own policies, as words for those of others."""

from __future__ import annotations

from falctl.core.policies.base import Execute, LoadModel, State


def fault(state: State, move: object) -> str | None:
    """Return what is wrong with *move* now; None: nothing, it can be made."""
    match move:
        case None:
            return None
        case Execute():
            return _execution(state, move)
        case LoadModel():
            return _load(state, move)
        case _:
            return f"choose() returned {type(move).__name__}, not Execute, LoadModel or None"


def _execution(state: State, move: Execute) -> str | None:
    runner = state.fleet.runners.get(move.runner)
    if move.request not in state.queue:
        return f"request {move.request!r} does not wait"
    if runner is None:
        return f"there is no runner {move.runner!r}"
    return None if runner.free_slots else f"runner {move.runner} has no free slot"


def _load(state: State, move: LoadModel) -> str | None:
    runner = state.fleet.runners.get(move.runner)
    if runner is None:
        return f"there is no runner {move.runner!r}"
    if not runner.can_load or runner.hints is None:
        return f"runner {move.runner} cannot load now"
    if move.hint in runner.hints:
        return f"{move.hint!r} is resident on runner {move.runner}"
    if executing := [victim for victim in move.evict if runner.executes(victim)]:
        return f"{executing[0]!r} executes on runner {move.runner} and cannot be evicted"
    if pinned := [victim for victim in move.evict if victim in runner.pinned]:
        return f"{pinned[0]!r} is pinned on runner {move.runner} and cannot be evicted"
    return None
