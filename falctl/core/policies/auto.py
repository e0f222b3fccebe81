"""
`auto`: hits first by due time, copies that pay for themselves, victims by what they are worth.

Two kinds of move, both ordered by a virtual due time, ``due + head start * own cost``: short work first, but nothing
that became due later than the head start can overtake. That bounds bypassing, whatever the length of the queue.

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

from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter

from falctl.core.fleet import Runner
from falctl.core.policies.base import Candidate, Execute, LoadModel, Move, State
from falctl.core.policies.explain import weigh, weighed
from falctl.core.policies.knobs import Knobs
from falctl.core.policies.look import FRESH_S, Look, look_at
from falctl.core.types import Hint


@dataclass(frozen=True, slots=True)
class _Choice:
    """A move and when it is due."""

    key: float
    runner: Runner
    hint: Hint | None
    reason: str
    evict: tuple[Hint, ...] = ()


class Auto:
    """See the module. What it carries over is derived from the state alone."""

    def __init__(self, knobs: Knobs | None = None) -> None:
        self.knobs = knobs or Knobs()
        self._carried: Look | None = None

    def choose(self, state: State, *, now: float) -> Move | None:
        """Return the next move."""
        look = self._look(state, now)
        execute = self._execute(look)
        open_runners = [r for r in look.runners if _may_load(r)]
        # A load can wait for the next round if it runs beside the execution, unless it needs the slot that this would pin.
        if execute is not None and look.overlaps and not self._blocked(look, execute, open_runners):
            return self._told(look, _execution(state, execute))
        load = self._load(look, open_runners)
        if load is not None and (execute is None or load.key < execute.key):
            return self._told(look, _loading(state, load))
        if execute is None:
            look.settle()
        return None if execute is None else self._told(look, _execution(state, execute))

    def weigh(self, state: State, hint: Hint, *, now: float) -> tuple[Candidate, ...]:
        """Return every runner as it stands to *hint*, which somebody waits for; nothing is decided."""
        return weigh(look_at(state, self.knobs, now=now), hint, self, busy_too=True)

    def saves(self, look: Look, hint: Hint, runner: Runner) -> float:
        """Return the request-seconds that a further copy on *runner* saves, now and over its horizon."""
        return self._saves(look, hint, runner) + look.worth.further_copy(hint)

    def _told(self, look: Look, move: Move) -> Move:
        return weighed(look, move, self, lambda look, runner, hint: _regret(look, runner, hint)[1])

    def _look(self, state: State, now: float) -> Look:
        """Return the look of the last event with what has changed since, or a new one."""
        look = self._carried
        if look is None or look.state is not state or state.changes.all or now - look.made_at >= FRESH_S:
            look = self._carried = look_at(state, self.knobs, now=now)
        else:
            look.refresh(state.changes, now=now)
        state.changes.clear()
        return look

    # --- executions ------------------------------------------------------------------------------

    def _execute(self, look: Look) -> _Choice | None:
        least: tuple[float, str] | None = None
        holders: list[Runner] = []
        chosen: Hint | None = None
        for runner in look.runners:
            if not runner.free_slots:
                continue
            for hint in _servable(look.state, runner):
                key = (self._turn(look, hint, runner), hint or "")
                if least is None or key < least:
                    least, holders, chosen = key, [runner], hint
                elif hint == chosen:
                    holders.append(runner)
        if least is None:
            return None
        runner = holders[0] if len(holders) == 1 else min(holders, key=lambda r: _regret(look, r, chosen))
        reason = "wants no hint" if chosen is None else "warm"
        return _Choice(look.queues.execute_key(chosen, runner), runner, chosen, reason)

    def _turn(self, look: Look, hint: Hint | None, runner: Runner) -> float:
        """Return when *hint* is due on *runner*: later if others could run it, so that scarce models go first."""
        key = look.queues.execute_key(hint, runner)
        if hint is None:
            return key
        return key + self.knobs.scarce * (len(look.copies[hint]) - 1) * look.queues.exec_s(hint)

    # --- loads -----------------------------------------------------------------------------------

    def _blocked(self, look: Look, execute: _Choice, open_runners: list[Runner]) -> bool:
        """Return whether a model that nobody holds is due before, and would find no room beside *execute*."""
        for hint in look.state.queue.hints() if open_runners else ():
            if hint is None or hint in look.copies:
                continue
            key = look.queues.load_key(hint)
            if key < execute.key and not any(_fits(look, r, hint, execute) for r in open_runners):
                return True
        return False

    def _load(self, look: Look, open_runners: list[Runner]) -> _Choice | None:
        if not open_runners:
            return None
        unloadable = look.state.fleet.unloadable
        last_turn = look.room.last_turn(open_runners)
        for key, hint, runners in sorted(self._worth_a_try(look, open_runners), key=itemgetter(0, 1)):
            if key >= last_turn:
                break
            holders = look.copies.get(hint, [])
            options = [r for r in runners if r not in holders] if holders else runners
            if hint in unloadable:  # it is to be executed cold, so that its client hears why
                options = [r for r in options if r.free_slots]
            if (choice := self._place(look, hint, key, options)) is not None:
                return choice
        return None

    def _worth_a_try(
        self, look: Look, open_runners: list[Runner]
    ) -> Iterator[tuple[float, Hint, list[Runner]]]:
        """Iterate over models that wait, by when they are due and on which runners, but for hopeless copies."""
        coming = {h for r in look.runners for h in _coming(r)}
        for hints, runners in look.to_load(open_runners):
            least_s = min(map(look.queues.backlog_s, runners))
            for hint in hints:
                if hint is None or hint in coming:
                    continue
                if hint not in look.copies or self._most(look, hint, least_s) > look.worth.price:
                    yield look.queues.load_key(hint), hint, runners

    def _place(self, look: Look, hint: Hint, key: float, options: list[Runner]) -> _Choice | None:
        """Return where to load *hint* for the least cost; None: nowhere now, or holding is cheaper."""
        best: tuple[float, int, int, int] | None = None
        chosen: tuple[Runner, tuple[Hint, ...], float] | None = None
        for runner in options:
            if (found := look.room.victims(runner, hint, key)) is None:
                continue
            loss = look.worth.horizon_s * found[1]
            crowd = len(look.state.fleet.held(runner)) + len(runner.loading)
            cost = loss + self.knobs.balance * look.queues.backlog_s(runner)
            if best is None or (cost, len(found[0]), crowd, runner.runner) < best:
                best = (cost, len(found[0]), crowd, runner.runner)
                chosen = (runner, found[0], loss)
        if chosen is None:
            return None
        runner, victims, loss = chosen
        if hint not in look.copies:
            return _Choice(key, runner, hint, "nobody is warm for it", victims)
        earns = self._saves(look, hint, runner) + look.worth.further_copy(hint) - look.worth.price
        return None if earns < loss else _Choice(key, runner, hint, "a further copy pays", victims)

    def _most(self, look: Look, hint: Hint, least_s: float) -> float:
        """Return a bound on what a copy could earn on any runner; *least_s* is the least backlog of them."""
        return look.worth.further_copy(hint) + self._moves(look, hint, least_s, elsewhere=0.0)

    def _saves(self, look: Look, hint: Hint, runner: Runner) -> float:
        """Return the request-seconds saved by a copy on *runner*: part of the work moves there and ends earlier."""
        backlog_s = look.queues.backlog_s(runner)
        return self._moves(look, hint, backlog_s, elsewhere=look.queues.others(runner, hint))

    def _moves(self, look: Look, hint: Hint, backlog_s: float, *, elsewhere: float) -> float:
        """Return the same for a runner that is free in *backlog_s* and wanted by *elsewhere* requests for its models."""
        queues, copies = look.queues, len(look.copies[hint])
        earlier_s = queues.drained_s(hint) - max(look.state.costs.load_s(hint), backlog_s)
        if earlier_s <= 0:
            return 0.0
        exec_s = queues.exec_s(hint)
        moved_s = min(look.state.queue.count(hint) * exec_s, earlier_s * copies / (copies + 1))
        return moved_s * (earlier_s / exec_s + self.knobs.relief * (queues.spared(hint) - elsewhere))


def _fits(look: Look, runner: Runner, hint: Hint, execute: _Choice) -> bool:
    keep = execute.hint if runner is execute.runner else None
    return look.room.victims(runner, hint, look.queues.load_key(hint), keep=keep) is not None


def _regret(look: Look, runner: Runner, hint: Hint | None) -> tuple[int, float, float, int, int]:
    """Return what else *runner* is wanted for: of several that are warm, take the least wanted, then the next in turn."""
    others = sorted(h for h in look.state.fleet.held(runner) if h != hint)
    work_s, share = sum(map(look.queues.work_s, others)), sum(map(look.state.demand.share, others))
    return len(runner.in_use), work_s, share, runner.dispatched_order, runner.runner


def _servable(state: State, runner: Runner) -> Iterator[Hint | None]:
    """Iterate over what waits and could run on *runner* at once."""
    queue = state.queue
    if queue.count(None):
        yield None
    for hint in state.fleet.held(runner):
        if queue.count(hint):
            yield hint


def _may_load(runner: Runner) -> bool:
    """Return whether a load could begin there now: as a job of its own, or as part of a cold execution."""
    return runner.can_load if runner.caps.loads else bool(runner.free_slots)


def _coming(runner: Runner) -> Iterator[Hint]:
    """Iterate over what *runner* is loading: as a job, or by itself for a cold execution."""
    yield from runner.loading
    if not runner.caps.loads:
        for running in runner.in_use.values():
            if running.hint is not None and running.hint not in (runner.hints or ()):
                yield running.hint


def _execution(state: State, choice: _Choice) -> Execute:
    head = state.queue.head(choice.hint)
    assert head is not None
    return Execute(head.request, choice.runner.runner, choice.reason)


def _loading(state: State, choice: _Choice) -> Move:
    assert choice.hint is not None
    if choice.runner.caps.loads and choice.hint not in state.fleet.unloadable:
        return LoadModel(choice.hint, choice.runner.runner, choice.evict, choice.reason)
    return _execution(state, choice)
