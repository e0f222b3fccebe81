"""
`auto`: hits first by due time, copies that pay for themselves, victims by what they are worth.

Two kinds of move, both ordered by a virtual due time, ``due + head start * own cost``: short work first, but nothing
that became due later than the head start can overtake. That bounds bypassing, whatever the length of the queue: with
H the longest head start, a slot that could run *q* is never given to what is due more than H after *q*; no model is
loaded where *q*'s could be, and no slot pins the last room for *q*'s load, for such a request either; what is evicted
as the only copy of a model that somebody waits for goes to one that is due before. After that *q* waits for what has
begun: one execution, one load, its own load.

    execute  over free runners and the models resident there that somebody waits for: the least due time; a model
             that only this runner holds goes before one that others can run, too
    load     over models that somebody waits for and nobody loads, the least due time (its cost includes the load):
             - nobody holds it: load it where victims and backlog cost least
             - somebody does: a further copy only if what it saves exceeds its price and its victims; else hold

What a copy is worth is the load time per second that it saves: rate x load x (Erlang B of one copy less - Erlang B),
with the offered load taken higher than its mean because requests come in bursts. A copy is retired by the same
rule: it is a victim as soon as it is worth less than the others. The rule grew from the prototype "Tideline", which
knew true costs and the ends of running jobs; this one learns and estimates.
"""

from __future__ import annotations

from falctl.core.policies.base import Candidate, Execute, LoadModel, Move, State
from falctl.core.policies.executions import find_execution
from falctl.core.policies.explain import weigh, weighed
from falctl.core.policies.knobs import Knobs
from falctl.core.policies.loads import find_load, is_blocked, open_to_loads, reservation
from falctl.core.policies.look import FRESH_S, Choice, Look, look_at
from falctl.core.types import Hint


class Auto:
    """See the module. What it carries over is derived from the state alone."""

    def __init__(self, knobs: Knobs | None = None) -> None:
        self.knobs = knobs or Knobs()
        self._carried: Look | None = None

    def choose(self, state: State, *, now: float) -> Move | None:
        """Return the next move."""
        look = self._look(state, now)
        choice = _choose(look)
        if choice is None:
            look.settle()
            return None
        return weighed(look, _move(state, choice))

    def weigh(self, state: State, hint: Hint, *, now: float) -> tuple[Candidate, ...]:
        """Return every runner as it stands to *hint*, which somebody waits for; nothing is decided."""
        return weigh(look_at(state, self.knobs, now=now), hint, busy_too=True)

    def _look(self, state: State, now: float) -> Look:
        """Return the look of the last event with what has changed since, or a new one."""
        look = self._carried
        if look is None or look.state is not state or state.changes.all or now - look.made_at >= FRESH_S:
            look = self._carried = look_at(state, self.knobs, now=now)
        else:
            look.refresh(state.changes, now=now)
        state.changes.clear()
        return look


def _choose(look: Look) -> Choice | None:
    open_runners = open_to_loads(look)
    reserved = reservation(look, open_runners) if look.many_slots else None
    execute = find_execution(look, reserved)
    # A load can wait for the next round if it runs beside the execution, unless it needs the slot that this would pin.
    if execute is not None and look.overlaps and not is_blocked(look, execute, open_runners):
        return execute
    load = find_load(look, open_runners)
    return load if load is not None and (execute is None or load.key < execute.key) else execute


def _move(state: State, choice: Choice) -> Move:
    if choice.loads and choice.runner.takes_jobs and choice.hint not in state.fleet.unloadable:
        assert choice.hint is not None
        return LoadModel(choice.hint, choice.runner.runner, choice.evict, choice.reason)
    head = state.queue.head(choice.hint)
    assert head is not None
    return Execute(head.request, choice.runner.runner, choice.reason)
