"""
How runners stood to a model when a move was made: what a decision is explained with.

Two ways. `plain` tells what every policy could see: who is warm, busy, loading, open. `weighed` and `weigh` add what
`auto` compared: backlogs, victims and their worth, what a further copy saves against its price. Figures are taken
for the chosen model only, and for moves that are made, so that a decision stays cheap.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from falctl.core.fleet import Runner
from falctl.core.policies.base import Candidate, Execute, LoadModel, Move, Standing, State
from falctl.core.policies.copies import saves
from falctl.core.policies.executions import regret
from falctl.core.policies.loads import delay_s
from falctl.core.policies.look import Look
from falctl.core.types import Hint, RunnerId

# --- any policy ----------------------------------------------------------------------------------


def standing(state: State, hint: Hint | None, runner: Runner) -> Standing:
    """Return how *runner* stands to *hint*; None: to a request that wants no model, so that nobody is warm."""
    if not runner.accepting or runner.blocked:
        return "takes nothing"
    if hint is None:
        return "open" if runner.free_slots else "busy"
    if hint in runner.loading:
        return "loading it"
    if state.fleet.warm(hint, runner):
        return "warm" if runner.free_slots else "warm, busy"
    if not runner.takes_jobs and runner.executes(hint):
        return "loading it"
    return "refused it" if state.avoids(hint, runner) else _cold(state, hint, runner)


def _cold(state: State, hint: Hint, runner: Runner) -> Standing:
    # What could not be loaded is executed, so that its client hears why: that takes a slot.
    executes = runner.free_slots or hint not in state.fleet.unloadable
    return "open" if executes and runner.may_begin_load else "busy"


def plain(state: State, move: Move) -> tuple[Candidate, ...]:
    """Return every runner as it stands to what *move*, which has not been made yet, is for."""
    hint = hint_of(state, move)
    return tuple(Candidate(r.runner, standing(state, hint, r)) for r in state.fleet.runners.values())


def hint_of(state: State, move: Move) -> Hint | None:
    """Return the model that *move* is for; None: its request wants none."""
    if isinstance(move, LoadModel):
        return move.hint
    waiting = state.queue.get(move.request)
    return None if waiting is None else waiting.hint


def free_in_s(state: State, runner: Runner, *, now: float) -> float:
    """Return the seconds until *runner* should have a free slot, by learnt costs; 0: it has one, or is about to."""
    if runner.free_slots:
        return 0.0
    loads = () if runner.caps.overlaps else load_rests(state, runner, now=now).values()
    ends = sorted(_rests(state, runner, now))
    return max(ends[len(ends) - runner.slots] if len(ends) >= runner.slots else 0.0, *loads, 0.0)


def load_rests(state: State, runner: Runner, *, now: float) -> dict[Hint, float]:
    """Return the seconds that each load job of *runner* should still take."""
    costs = state.costs
    return {
        h: max(costs.load_s(h, runner.loads_from(h)) - (now - since), 0.0)
        for h, since in runner.loading.items()
    }


def _rests(state: State, runner: Runner, now: float) -> Iterable[float]:
    costs = state.costs
    for running in runner.in_use.values():
        hint = running.hint
        expected = costs.mean_exec.value if hint is None else costs.exec_s(hint, runner.card)
        if hint is not None and not running.warm and not runner.takes_jobs:
            expected += costs.load_s(hint, running.source)
        yield max(expected - (now - running.started_at), 0.0)


_ABLE: Final = frozenset({"warm", "open"})

# --- auto ----------------------------------------------------------------------------------------


def weighed(look: Look, move: Move) -> Move:
    """Return *move* with the runners that were compared for it."""
    hint = hint_of(look.state, move)
    if isinstance(move, LoadModel):
        return LoadModel(move.hint, move.runner, move.evict, move.reason, weigh(look, move.hint))
    if hint is None or _is_warm(look, hint, move.runner):
        candidates = _holders(look, hint)
    else:
        candidates = weigh(look, hint)
    return Execute(move.request, move.runner, move.reason, candidates)


def weigh(look: Look, hint: Hint, *, busy_too: bool = False) -> tuple[Candidate, ...]:
    """
    Return every runner as it stands to *hint*, which somebody waits for, with what a load on it would cost.

    Figures are those of the runners that could begin a load now, which `auto` has compared and so are at hand;
    *busy_too*: of all, which takes longer.
    """
    price = look.worth.price if look.copies.get(hint) else None
    found = []
    for runner in look.state.fleet.runners.values():
        stands = standing(look.state, hint, runner)
        if stands == "open" or (busy_too and stands != "takes nothing"):
            found.append(_weighed(look, hint, runner, stands=stands, price=price))
        else:
            found.append(Candidate(runner.runner, stands))
    return tuple(found)


def _weighed(look: Look, hint: Hint, runner: Runner, *, stands: Standing, price: float | None) -> Candidate:
    backlog_s = look.queues.backlog_s(runner)
    if stands in ("warm", "warm, busy", "loading it"):
        return Candidate(runner.runner, stands, backlog_s=backlog_s)
    saved = None if price is None else saves(look, hint, runner)
    found = look.room.victims(runner, hint, look.queues.load_key(hint))
    if found is None:
        lacks: Standing = "no room" if stands == "open" else stands
        return Candidate(runner.runner, lacks, backlog_s=backlog_s, saves=saved, price=price)
    loss = look.worth.horizon_s * found[1]
    cost = loss + look.knobs.balance * delay_s(look, hint, runner) if stands == "open" else None
    source = runner.source(hint)
    return Candidate(runner.runner, stands, cost, backlog_s, found[0], loss, saved, price, source)


def _holders(look: Look, hint: Hint | None) -> tuple[Candidate, ...]:
    """Return who could run it: of several with a free slot, the one that is least wanted for other work runs it."""
    runners = look.runners if hint is None else look.copies[hint]
    stands = [(r, standing(look.state, hint, r)) for r in runners]
    able = sum(1 for _, stand in stands if stand in _ABLE)
    return tuple(
        Candidate(r.runner, stand, regret(look, r, hint) if able > 1 and stand in _ABLE else None)
        for r, stand in stands
    )


def _is_warm(look: Look, hint: Hint, runner: RunnerId) -> bool:
    """Return whether `auto` counts *runner* among the holders, with a slot for it."""
    return any(r.runner == runner and r.free_slots for r in look.copies.get(hint, ()))
